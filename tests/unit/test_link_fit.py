import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.engine.probing import ProbeSettings
from crosspipe_ray.links.fit import (
    Exchange,
    clock_offset_ns,
    fit_line,
    groups_of,
    interval,
    occupancies_us,
    resampled_medians,
    share_a_channel,
)
from tests.unit.synthetic_links import SIZES, TrueLink

COSTS = st.floats(1e-4, 1e4)


@given(intercept=COSTS, slope=COSTS)
def test_a_line_is_found_again_exactly(intercept: float, slope: float) -> None:
    line = fit_line(SIZES, [intercept + slope * size for size in SIZES])
    assert line.intercept == pytest.approx(intercept, rel=1e-3, abs=slope * 1e-3)
    assert line.slope == pytest.approx(slope, rel=1e-6)
    assert line.residual == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("factor", [1.5, 3, 10, 1e4])
@pytest.mark.parametrize("wild", range(len(ProbeSettings().sizes)))
def test_one_wild_size_changes_nothing(wild: int, factor: float) -> None:
    sizes = np.array(ProbeSettings().sizes)
    for intercept, slope in ((200, 0.008), (40, 0.0016), (500, 0.1), (20, 1e-4)):
        times = intercept + slope * sizes
        times[wild] *= factor
        assert fit_line(sizes, times)[:2] == pytest.approx((intercept, slope), rel=1e-6)


@given(points=st.lists(st.tuples(st.integers(1, 10**7), st.floats(0.1, 1e6)), min_size=1))
def test_no_line_falls_or_starts_below_zero(points: list[tuple[int, float]]) -> None:
    line = fit_line(*zip(*points, strict=True))
    assert line.intercept >= 0
    assert line.slope >= 0
    assert line.residual >= 0


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1, 1e6)), min_size=2, max_size=9))
def test_no_other_line_is_nearer_to_the_points(points: list[tuple[int, float]]) -> None:
    x, y = map(np.array, zip(*points, strict=True))
    line = fit_line(x, y)

    def distance(factors: tuple[float, float]) -> float:
        fitted = line.intercept * factors[0] + line.slope * factors[1] * x
        return float((np.abs(fitted - y) / np.sqrt(y)).sum())

    for factors in np.random.default_rng(0).uniform(0.5, 2.0, size=(50, 2)):
        assert distance((1.0, 1.0)) <= distance(tuple(factors)) * (1 + 1e-9)


def test_a_floor_under_small_messages_leaves_the_slope_to_the_large_ones() -> None:
    """As on a link whose ends need 40 us per message while the one before is still under way."""
    sizes = [1, 2**10, 2**14, 2**16, 2**17, 2**18, 2**20, 2**22, 2**23]
    line = fit_line(sizes, [max(40.0, size / 625) for size in sizes])
    assert line.slope == pytest.approx(1 / 625, rel=0.01)
    assert line.intercept <= 40
    assert line.residual > 0.03


def test_a_fit_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        fit_line([], [])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        sample = random.normal(100.0, 10.0, size=25)
        low, high = interval(resampled_medians([sample], seed=seed)[:, 0])
        covered += low <= 100.0 <= high
    assert 180 <= covered < 200


def test_redrawn_medians_come_from_the_seed() -> None:
    samples = [np.arange(20.0), np.arange(5.0)]
    first, again, other = (resampled_medians(samples, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (200, 2)
    assert (first == again).all()
    assert (first != other).any()


@given(offset_us=st.floats(-1e6, 1e6), latency_us=st.floats(1, 1e5))
def test_the_offset_of_the_clocks_is_found(offset_us: float, latency_us: float) -> None:
    link = TrueLink(
        latency_us=latency_us, overhead_us=0, bandwidth_bytes_per_s=1e12, clock_offset_us=offset_us
    )
    assert clock_offset_ns(link.exchanges()) == pytest.approx(offset_us * 1000, abs=2)


def test_a_lone_message_says_nothing_about_occupancy() -> None:
    assert occupancies_us([TrueLink().exchange(1, 1, np.random.default_rng(0))]).size == 0


def test_messages_that_travel_side_by_side_are_not_taken_for_fast_ones() -> None:
    """As Ray's objects do: four of 10 ms each, all there after latency and 40 ms."""
    lone = Exchange(1, asked_ns=0, heard_ns=0, sent_ns=0, arrived_ns=(110_000_000,))
    train = Exchange(1, asked_ns=0, heard_ns=0, sent_ns=0, arrived_ns=(140_000_000,) * 4)
    assert occupancies_us([lone, train]) == pytest.approx([10_000])


def test_a_message_that_stalls_at_the_end_of_a_train_changes_nothing() -> None:
    arrived = (65_000, 107_000, 149_000, 191_000, 233_000, 295_000)
    lone = Exchange(1, asked_ns=0, heard_ns=0, sent_ns=0, arrived_ns=(65_000,))
    train = Exchange(1, asked_ns=0, heard_ns=0, sent_ns=0, arrived_ns=arrived)
    assert occupancies_us([lone, train]) == pytest.approx([42])


@pytest.mark.parametrize(
    ("alone_s", "together_s", "shared"),
    [
        ((1.0, 1.0), 1.0, False),
        ((1.0, 1.0), 2.0, True),
        ((1.0, 1.0), 1.3, False),
        ((1.0, 0.2), 1.05, False),
        ((0.2, 1.0), 1.15, True),
    ],
)
def test_links_whose_loads_add_up_share_a_channel(
    alone_s: tuple[float, float], together_s: float, shared: bool
) -> None:
    assert share_a_channel(alone_s, together_s) is shared


def test_links_that_share_nothing_stay_by_themselves() -> None:
    assert groups_of(["a", "b"], []) == {}
