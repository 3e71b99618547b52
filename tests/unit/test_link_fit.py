import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.link_fit import (
    bootstrap,
    clock_offset_ns,
    fit_line,
    groups_of,
    occupancies_us,
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


@given(seed=st.integers(0, 1000), factor=st.floats(3, 1e4))
def test_two_wild_points_of_eight_change_nothing(seed: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(1, 1000, size=8))
    y = 40.0 + 2.0 * x
    wild = random.choice(8, 2, replace=False)
    y[wild] *= factor
    assert fit_line(x, y)[:2] == pytest.approx((40.0, 2.0), rel=1e-6)


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
    random = np.random.default_rng(0)
    for factors in random.uniform(0.5, 2.0, size=(50, 2)):
        other = line.intercept * factors[0] + line.slope * factors[1] * x
        assert line.residual <= float((np.abs(other - y) / y).mean()) + 1e-9


def test_a_fit_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a point"):
        fit_line([], [])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        sample = random.normal(100.0, 10.0, size=25)
        [(low, high)] = bootstrap([sample], lambda drawn: [float(np.median(drawn[0]))], seed=seed)
        covered += low <= 100.0 <= high
    assert covered >= 90


def test_intervals_come_from_the_seed() -> None:
    sample = np.arange(20.0)
    first, again, other = (
        bootstrap([sample], lambda drawn: [float(drawn[0].mean())], seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


@given(offset_us=st.floats(-1e6, 1e6), latency_us=st.floats(1, 1e5))
def test_the_offset_of_the_clocks_is_found(offset_us: float, latency_us: float) -> None:
    link = TrueLink(
        latency_us=latency_us, overhead_us=0, bandwidth_bytes_per_s=1e12, clock_offset_us=offset_us
    )
    assert clock_offset_ns(link.exchanges()) == pytest.approx(offset_us * 1000, abs=2)


def test_a_lone_message_says_nothing_about_occupancy() -> None:
    assert occupancies_us([TrueLink().exchange(1, 1, np.random.default_rng(0))]).size == 0


@pytest.mark.parametrize(
    ("alone", "together", "shared"),
    [
        ((100, 100), (100, 100), False),
        ((100, 100), (50, 50), True),
        ((100, 100), (70, 28), True),
        ((1000, 10), (900, 9.5), False),
        ((1000, 10), (990, 0.5), True),
        ((100, 100), (85, 80), False),
    ],
)
def test_links_that_slow_each_other_down_share_a_channel(
    alone: tuple[float, float], together: tuple[float, float], shared: bool
) -> None:
    assert share_a_channel(alone, together) is shared


def test_links_that_share_nothing_stay_by_themselves() -> None:
    assert groups_of(["a", "b"], []) == {}
