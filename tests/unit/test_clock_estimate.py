from collections.abc import Sequence

import numpy as np
import pytest

from crosspipe_ray.clock_estimate import (
    ASYMMETRY,
    HostClock,
    RoundTrip,
    clocks_of_ranks,
    estimate_clock,
)
from crosspipe_ray.report.clocks import clocks_markdown

US, MS, S = 1_000, 1_000_000, 1_000_000_000
START_NS = 1_700_000_000 * S
RUN_NS = 100 * S
AHEAD = HostClock(at_ns=START_NS, offset_ns=3 * S, drift_ppm=120.0)
BEHIND = HostClock(at_ns=START_NS, offset_ns=-86_400 * S, drift_ppm=-40.0)


def look(
    clock: HostClock,
    seed: int,
    *,
    at_ns: int = START_NS,
    there_ns: int = 25 * MS,
    back_ns: int = 25 * MS,
    queueing_ns: tuple[float, float] = (5.0 * MS, 0.5 * MS),
    num_round_trips: int = 32,
) -> list[RoundTrip]:
    """Round trips in a row; some wait in queues, on the way there longer than on the way back."""
    random = np.random.default_rng(seed)
    round_trips = []
    for _ in range(num_round_trips):
        there, back = random.exponential(queueing_ns)
        heard_ns = at_ns + there_ns + round(there)
        answered_ns = heard_ns + 50 * US
        arrived_ns = answered_ns + back_ns + round(back)
        far = clock.from_reference(heard_ns), clock.from_reference(answered_ns)
        round_trips.append(RoundTrip(at_ns, *far, arrived_ns))
        at_ns = arrived_ns
    return round_trips


def before_and_after(clock: HostClock, seed: int, *, back_ns: int = 25 * MS) -> list[RoundTrip]:
    before = look(clock, seed, back_ns=back_ns)
    return before + look(clock, seed + 1000, at_ns=START_NS + RUN_NS, back_ns=back_ns)


def errors_ns(estimate: HostClock, truth: HostClock) -> list[int]:
    """How wrong the offset is, at the start, in the middle and at the end."""
    return [
        abs(estimate.from_reference(moment) - truth.from_reference(moment))
        for moment in (START_NS, START_NS + RUN_NS // 2, START_NS + RUN_NS)
    ]


@pytest.mark.parametrize("truth", [AHEAD, BEHIND])
@pytest.mark.parametrize("seed", range(10))
def test_equal_ways_give_offset_and_drift_however_much_queues(truth: HostClock, seed: int) -> None:
    estimate = estimate_clock(before_and_after(truth, seed))
    assert max(errors_ns(estimate, truth)) < 0.5 * MS  # the mean of the noise is ten times that
    assert abs(estimate.drift_ppm - truth.drift_ppm) < 5.0
    assert 50 * MS < estimate.round_trip_ns < 51 * MS
    assert 25 * MS < estimate.error_ns < 26 * MS


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("back_ns", [0, 5 * MS, 60 * MS])
def test_the_error_holds_whatever_the_asymmetry(seed: int, back_ns: int) -> None:
    estimate = estimate_clock(before_and_after(AHEAD, seed, back_ns=back_ns))
    assert max(errors_ns(estimate, AHEAD)) <= estimate.error_ns
    assert abs(estimate.drift_ppm - AHEAD.drift_ppm) <= estimate.drift_error_ppm
    # Half of the asymmetry is in the offset, and nothing tells.
    assert max(errors_ns(estimate, AHEAD)) > abs(25 * MS - back_ns) / 2 - 0.5 * MS


def test_stalls_in_most_of_the_round_trips_change_nothing() -> None:
    round_trips = before_and_after(AHEAD, seed=0)
    fastest = sorted(round_trips, key=lambda each: each.way_ns)
    stalled = [
        RoundTrip(each.asked_ns, each.heard_ns, each.answered_ns, each.arrived_ns + S)
        for each in fastest[24:]
    ]
    assert max(errors_ns(estimate_clock([*fastest[:24], *stalled]), AHEAD)) < 0.5 * MS


def test_one_look_tells_no_drift_but_its_error_holds_while_it_lasts() -> None:
    estimate = estimate_clock(look(AHEAD, seed=0, num_round_trips=16))
    assert estimate.drift_ppm == 0.0
    assert abs(estimate.offset_ns - AHEAD.offset_ns) < 0.5 * MS
    assert estimate.drift_error_ppm >= AHEAD.drift_ppm


def test_a_clock_that_was_set_between_the_looks_shows_in_the_error() -> None:
    was_set = HostClock(at_ns=START_NS, offset_ns=AHEAD.offset_ns + 2 * S)
    estimate = estimate_clock(look(AHEAD, seed=0) + look(was_set, seed=1, at_ns=START_NS + RUN_NS))
    assert estimate.error_ns > 0.9 * S


def test_two_round_trips_of_no_length_are_exact() -> None:
    ends = (START_NS, START_NS + RUN_NS)
    far = [BEHIND.from_reference(at) for at in ends]
    exact = [RoundTrip(at, there, there, at) for at, there in zip(ends, far, strict=True)]
    estimate = estimate_clock(exact)
    assert max(errors_ns(estimate, BEHIND)) <= 2
    assert estimate.error_ns < 10


def test_to_reference_undoes_from_reference() -> None:
    for clock in (AHEAD, BEHIND):
        for moment in (START_NS - RUN_NS, START_NS, START_NS + RUN_NS):
            assert abs(clock.to_reference(clock.from_reference(moment)) - moment) <= 1


def test_ranks_of_one_host_share_what_was_measured() -> None:
    clocks = clocks_of_ranks(["us", "us", "eu", "eu"], {2: look(AHEAD, seed=0)})
    assert list(clocks) == [2, 3]
    assert clocks[2] == clocks[3]
    assert clocks_of_ranks(["us", "us"], {}) == {}


def test_without_a_round_trip_there_is_no_clock() -> None:
    with pytest.raises(ValueError, match="needs a round trip"):
        estimate_clock([])


def lines(clocks: dict[int, HostClock]) -> Sequence[str]:
    return clocks_markdown(clocks).splitlines()


def test_the_report_names_each_clock_once_and_says_what_cannot_be_seen() -> None:
    clock = HostClock(
        at_ns=0, offset_ns=-1_234_567_890, drift_ppm=12.34, error_ns=25e6, round_trip_ns=50 * MS
    )
    table = lines({3: clock, 2: clock, 1: BEHIND})
    assert table[2].startswith("| 1 | -86,400,000.000 ms | -40.0 ppm |")
    assert table[3] == "| 2, 3 | -1,234.568 ms | +12.3 ppm | 25.000 ms, 0.0 ppm | 50.000 ms |"
    assert table[-1].endswith(ASYMMETRY)
    assert lines({}) == []
