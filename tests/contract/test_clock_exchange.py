"""A rank whose clock is wrong: what the exchange finds out, and what becomes of its timeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import pytest

from crosspipe_ray.clock_estimate import HostClock, RoundTrip, clocks_of_ranks
from crosspipe_ray.engine import clock
from crosspipe_ray.engine.clock_exchange import exchange_clocks
from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import StepReport, on_one_clock, step_timeline
from crosspipe_ray.ops import receive_of
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.report.prediction import Prediction, predictions
from tests.contract.rank_processes import RankProcesses

CLOCK_IDS = ("us", "eu")
NUM_STEPS = 6
TIMEOUT_S = 40.0
S = 1_000_000_000


@dataclass(frozen=True)
class Part:
    """What one rank brings back."""

    reports: list[StepReport]
    before: dict[int, list[RoundTrip]]
    after: dict[int, list[RoundTrip]]


def rehearse(transport: Transport, made: Plan, wrong: HostClock) -> Part:
    """A rehearsal between two looks at the clocks; rank 1's is wrong."""
    program = lower(made.problem, made.timeline)[transport.rank]
    worker = RehearsalRank(made.problem, program, transport, timeout_s=TIMEOUT_S)
    look = partial(exchange_clocks, transport, CLOCK_IDS, timeout_s=TIMEOUT_S)
    with clock.going_wrong(wrong) if transport.rank else nullcontext():
        before = look()
        reports = [worker.step(index) for index in range(NUM_STEPS)]
        return Part(reports, before, look())


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(2, tmp_path_factory.mktemp("ranks"), checks_leaks=False)
    yield processes
    assert processes.stop() == "", "a rank writes to stderr"


def small_plan() -> Plan:
    recipe = Recipe(
        num_ranks=2,
        num_microbatches=8,
        forward_us=10_000,
        backward_input_us=10_000,
        backward_weight_us=10_000,
        output_bytes=1000,
    )
    return plan(generate(recipe), method="zb-h1")


def ways_ns(reports: Iterable[StepReport]) -> list[int]:
    """From handing over each message to its arrival."""
    records = [report.record for report in reports]
    return [
        records[peer].arrived[receive_of(send)] - start_ns
        for record in records
        for send, (peer, start_ns, _) in record.sent.items()
    ]


def compare(
    made: Plan, steps: Iterable[list[StepReport]], clocks: Mapping[int, HostClock]
) -> list[Prediction]:
    measured = [step_timeline(reports, clocks) for reports in steps]
    return predictions(made.timeline, measured, clusters=CLOCK_IDS)


@pytest.mark.parametrize(("offset_ns", "drift_ppm"), [(2 * S, 400.0), (-3600 * S, -400.0)])
def test_a_wrong_clock_is_found_out_and_its_timeline_is_causal(
    rank_processes: RankProcesses, offset_ns: int, drift_ppm: float
) -> None:
    start_ns = clock.now_ns()
    wrong = HostClock(at_ns=start_ns, offset_ns=offset_ns, drift_ppm=drift_ppm)
    made = small_plan()
    parts = rank_processes.run("plain", 2, partial(rehearse, made=made, wrong=wrong))
    steps = [list(reports) for reports in zip(*(part.reports for part in parts), strict=True)]

    round_trips = {1: parts[0].before[1] + parts[0].after[1]}
    clocks = clocks_of_ranks(CLOCK_IDS, round_trips)
    found = clocks[1]

    assert parts[1].before == parts[1].after == {}
    assert found.error_ns < 0.02 * S  # a round trip on one host, on a busy one too
    assert abs(found.drift_ppm - drift_ppm) <= found.drift_error_ppm
    for moment in (found.at_ns, round_trips[1][-1].arrived_ns):
        off_ns = abs(found.from_reference(moment) - wrong.from_reference(moment))
        assert off_ns <= found.error_ns

    assert min(min(ways_ns(reports)) for reports in steps) < -S, "the clock is not wrong"
    for reports in steps:
        assert min(ways_ns(on_one_clock(reports, clocks))) >= -found.error_ns

    # Planned against measured is what the right clocks would have shown.
    allowed_us = 2 * found.error_ns / 1000 + 1
    for row, right in zip(
        compare(made, steps, clocks), compare(made, steps, {1: wrong}), strict=True
    ):
        assert row.planned_us == right.planned_us
        assert row.measured_us == pytest.approx(right.measured_us, abs=allowed_us)


def same_clock(transport: Transport) -> dict[int, list[RoundTrip]]:
    return exchange_clocks(transport, ("us", "us"), timeout_s=TIMEOUT_S)


def test_ranks_that_share_a_clock_exchange_nothing(rank_processes: RankProcesses) -> None:
    assert rank_processes.run("plain", 2, same_clock) == [{}, {}]
