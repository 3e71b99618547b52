"""What the commands about the network refuse before anything starts."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from crosspipe_ray.carriers import Carrier
from crosspipe_ray.cli.app import app, main
from crosspipe_ray.config import Config
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import link_profile_of, problem_of
from crosspipe_ray.errors import InputError
from crosspipe_ray.links.choice import named_carriers
from crosspipe_ray.links.profile import LinkProfile, write_link_profile
from tests.unit.synthetic_links import TrueLink, measured, profile_of
from tests.unit.test_config import config_data

COSTS = LayerCosts(1.0, 1.0, 1.0, 10, 0, 1024 * 1024, 0, 0)


def complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr("sys.argv", ["crosspipe", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "-o", "links.json"], "give --config CONFIG.yaml of a run, or --address"),
        (["probe", "-o", "no/l.json", "--address", "a:1"], "there is no folder no"),
        (
            ["probe", "-o", "l", "--address=a:1", "--transport=collective", "--num-streams=4"],
            "--num-streams: only --transport streams has them",
        ),
        (["probe", "-o", "links.json", "--config", "no.yaml"], "no.yaml: No such file"),
        (["probe", "-o", "l.json", "--address", "127.0.0.1:1"], "nothing answers there"),
        (["doctor", "--address", "127.0.0.1:1"], "nothing answers there"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = complaint(monkeypatch, capsys, *arguments)
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_both_commands_are_registered() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {"probe", "doctor"} <= names


def both_ways(age_hours: float = 0) -> LinkProfile:
    links = [measured(TrueLink(), src=src, dst=dst) for src, dst in (("us", "eu"), ("eu", "us"))]
    when = datetime.now(timezone.utc) - timedelta(hours=age_hours)
    return profile_of(*links, measured_at=when)


def config(path: Path, *, allow_old: bool = False) -> Config:
    data = config_data()
    data["cluster"] |= {"link_profile": str(path), "allow_old_link_profile": allow_old}
    return Config.model_validate(data)


def test_measured_links_take_the_place_of_configured_ones(tmp_path: Path) -> None:
    write_link_profile(both_ways(), tmp_path / "links.json")
    run = config(tmp_path / "links.json")
    costs = [[COSTS] * 3] * 3
    assert [link.bandwidth_bytes_per_s for link in problem_of(run, costs).links] == [None] * 2
    links = problem_of(run, costs, link_profile_of(run)).links
    assert [(link.src, link.dst) for link in links] == [("us", "eu"), ("eu", "us")]
    assert [link.bandwidth_bytes_per_s for link in links] == pytest.approx([125e6] * 2, rel=0.01)


def test_links_beyond_their_limit_are_refused_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    write_link_profile(both_ways(age_hours=200), path)
    with pytest.raises(InputError, match="measured 200 h ago"):
        link_profile_of(config(path))
    assert link_profile_of(config(path, allow_old=True))


def test_auto_needs_measured_links() -> None:
    data = config_data()
    data["cluster"]["transport"] = "auto"
    with pytest.raises(InputError, match=r"cluster\.transport: 'auto' for us->eu chooses by"):
        link_profile_of(Config.model_validate(data))
    data["cluster"]["links"][0]["transport"] = "streams"
    assert link_profile_of(Config.model_validate(data)) is None


def test_configured_links_name_their_transport() -> None:
    data = config_data()
    data["cluster"]["links"][0] |= {"transport": "streams", "num_streams": 3}
    problem = problem_of(Config.model_validate(data), [[COSTS] * 3] * 3)
    streams = Carrier("streams", 3)
    assert named_carriers(problem) == {"us->eu": streams, "eu->us": streams}


def test_links_of_another_cluster_are_refused(tmp_path: Path) -> None:
    profile = both_ways()
    write_link_profile(
        profile.model_copy(update={"links": profile.links[:1]}), tmp_path / "links.json"
    )
    with pytest.raises(InputError, match="no measured link eu->us over collective"):
        link_profile_of(config(tmp_path / "links.json"))
