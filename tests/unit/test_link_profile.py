import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.errors import InputError
from crosspipe_ray.links.profile import read_link_profile, write_link_profile
from crosspipe_ray.problem import Problem, Rank, Stage
from crosspipe_ray.topology import topology_of
from tests.unit.synthetic_links import SIZES, TrueLink, measured, profile_of

NOW = datetime(2026, 1, 8, tzinfo=timezone.utc)
LINKS = st.builds(
    TrueLink,
    latency_us=st.floats(50, 200_000),
    overhead_us=st.floats(1, 2_000),
    bandwidth_bytes_per_s=st.floats(1e6, 1e10),
)


@settings(max_examples=25)
@given(LINKS)
def test_a_clean_link_is_found_again(link: TrueLink) -> None:
    found = measured(link)
    assert found.latency_us.value == pytest.approx(link.latency_us, rel=0.01)
    assert found.message_overhead_us.value == pytest.approx(link.overhead_us, rel=0.01, abs=0.1)
    assert found.bandwidth_bytes_per_s.value == pytest.approx(link.bandwidth_bytes_per_s, rel=0.01)
    assert found.residual < 0.01


def test_jitter_is_told_apart_from_latency() -> None:
    found = measured(TrueLink(jitter_us=5_000))
    assert found.jitter_us.p50 == pytest.approx(2_500, rel=0.3)
    assert found.jitter_us.p95 == pytest.approx(4_750, rel=0.1)
    assert 4_500 < found.jitter_us.p99 <= 5_000
    assert found.latency_us.value == pytest.approx(32_500, rel=0.03)
    assert found.latency_us.low <= 32_500 <= found.latency_us.high


def test_stalls_of_some_messages_change_little() -> None:
    found = measured(TrueLink(outliers=0.01, jitter_us=500))
    assert found.latency_us.value == pytest.approx(30_250, rel=0.01)
    assert found.bandwidth_bytes_per_s.value == pytest.approx(125e6, rel=0.02)


def test_clocks_that_disagree_are_corrected() -> None:
    link = TrueLink(clock_offset_us=-750_000)
    # The request has no overhead here, its answer has: half of that is not seen.
    assert measured(link, clocks_agree=False).latency_us.value == pytest.approx(30_000, abs=101)


def test_a_measured_link_takes_as_long_as_the_true_one() -> None:
    link = measured(TrueLink()).link()
    problem = Problem(
        num_microbatches=1,
        ranks=(Rank(cluster="us"), Rank(cluster="eu")),
        stages=tuple(
            Stage(rank=rank, forward_us=1, backward_input_us=1, backward_weight_us=1)
            for rank in range(2)
        ),
        links=(link,),
    )
    route = topology_of(problem).routes[0, 1]
    for size in SIZES:
        assert route.occupancy_ns(size) == pytest.approx(200_000 + size * 8, rel=0.01)
    assert route.latency_ns == pytest.approx(30e6, rel=0.01)
    assert link.latency_samples_us is not None
    assert len(link.latency_samples_us) == 49


def test_a_bent_link_becomes_a_curve_through_its_points() -> None:
    found = measured(TrueLink()).model_copy(update={"residual": 0.2})
    link = found.link()
    assert link.bandwidth_bytes_per_s is None
    assert link.bandwidth_curve is not None
    assert dict(link.bandwidth_curve)[SIZES[-1]] == pytest.approx(125e6, rel=0.01)


def test_latency_is_that_of_the_size_that_is_sent() -> None:
    """As with Ray's objects, whose large messages take more round trips."""
    found = measured(TrueLink())
    delayed = found.points[-1].delay_us.model_copy(
        update={"value": found.points[-1].delay_us.value + 120_000}
    )
    slow = found.points[-1].model_copy(update={"delay_us": delayed})
    found = found.model_copy(update={"points": (*found.points[:-1], slow)})
    assert found.link(message_bytes=1024).latency_us == pytest.approx(30_000, rel=0.01)
    large = found.link(message_bytes=SIZES[-1])
    assert large.latency_us == pytest.approx(150_000, rel=0.01)
    assert large.latency_samples_us is not None
    assert min(large.latency_samples_us) == pytest.approx(150_000, rel=0.01)


def test_a_profile_reads_back(tmp_path: Path) -> None:
    profile = profile_of(measured(TrueLink()))
    write_link_profile(profile, tmp_path / "links.json")
    assert read_link_profile(tmp_path / "links.json") == profile
    assert json.loads((tmp_path / "links.json").read_text())["version"] == 1


def test_an_old_profile_is_refused_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    write_link_profile(profile_of(measured(TrueLink()), measured_at=NOW), path)
    later = NOW + timedelta(hours=200)
    assert read_link_profile(path, now=NOW + timedelta(hours=167))
    with pytest.raises(InputError, match=r"links.json: measured 200 h ago, its limit is 168 h"):
        read_link_profile(path, now=later)
    assert read_link_profile(path, allow_old=True, now=later)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not JSON"), ('{"version": 1}', "missing"), ('{"lnks": []}', "did you mean 'links'")],
)
def test_a_broken_profile_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "links.json"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_link_profile(path)
