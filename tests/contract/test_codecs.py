"""Training over links with codecs: other numerics, the same every time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import pytest

from crosspipe_ray.engine.setup import assignments
from crosspipe_ray.engine.transports import LoopbackHub
from crosspipe_ray.errors import PlanError
from crosspipe_ray.report.codec_savings import codecs_line
from tests.contract.oracle import Outcome, body, make_config, make_plan, together
from tests.contract.rank_processes import RankProcesses, run_body

TIMEOUT_S = 100
CODECS = ("bf16", "int8")


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(2, tmp_path_factory.mktemp("ranks"), checks_leaks=False)
    yield processes
    assert processes.stop() == "", "a rank writes to stderr"


def in_threads(data: Path, codec: str, *, num_ranks: int = 2, method: str = "1f1b") -> Outcome:
    run, hub = body(data, num_ranks, method, codec=codec), LoopbackHub(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(run_body, hub.transport(rank), run) for rank in range(num_ranks)]
        return together([future.result(TIMEOUT_S) for future in futures])


def test_no_codec_is_plain_pytorch(data: Path, reference: Outcome) -> None:
    in_threads(data, "none").assert_equals(reference)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_changes_little_and_the_loss_goes_down(
    data: Path, reference: Outcome, codec: str
) -> None:
    losses = [fmean(step) for step in in_threads(data, codec).losses]
    wanted = [fmean(step) for step in reference.losses]
    assert losses != wanted
    assert losses == pytest.approx(wanted, rel=0.01)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("codec", CODECS)
def test_processes_over_gloo_and_another_schedule_give_the_same_bits(
    rank_processes: RankProcesses, data: Path, codec: str
) -> None:
    first = in_threads(data, codec)
    over_gloo = rank_processes.run("plain", 2, body(data, 2, "1f1b", codec=codec))
    together(over_gloo).assert_equals(first)
    # The same stages on the same ranks, so the same messages cross the link.
    in_threads(data, codec, method="zb-h1").assert_equals(first)


def test_a_wave_crosses_the_link_both_ways_with_both_kinds_of_message(data: Path) -> None:
    first = in_threads(data, "int8", num_ranks=4, method="zb-v")
    first.assert_equals(in_threads(data, "int8", num_ranks=4, method="zb-v"))
    assert fmean(first.losses[-1]) < fmean(first.losses[0]) - 0.1


def test_the_plan_of_a_run_says_what_its_codec_saves(data: Path) -> None:
    config = make_config(data, 2, codec="int8")
    made = make_plan(config, "1f1b")
    # Per microbatch 32 tokens of 32 values, there and back: 1024 bytes and 4 scales, or 4096 bytes.
    assert codecs_line(made).startswith(
        "int8: numerics change; 8.3 kB per step in place of 32.8 kB; makespan "
    )
    assert codecs_line(make_plan(make_config(data, 2), "1f1b")) == ""


def test_a_plan_with_another_codec_is_refused(data: Path) -> None:
    planned = make_plan(make_config(data, 2, codec="int8"), "1f1b")
    with pytest.raises(PlanError, match=r"codecs eu->us int8, us->eu int8, the config's \(none\)"):
        assignments(make_config(data, 2), planned)
