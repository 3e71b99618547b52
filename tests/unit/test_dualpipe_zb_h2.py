"""Bubble and memory formulas of zb-h2 and dualpipe-v (table in `planners.fixed`)."""

import pytest

from crosspipe_ray.errors import ProblemError
from crosspipe_ray.planners import fixed
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import make_problem

SIZES = [(2, 4), (2, 8), (3, 6), (4, 8), (4, 16), (8, 32)]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zb_h2_row(p: int, m: int) -> None:
    problem = make_problem(Pattern.ONE_PER_RANK.positions(p, 1), m)
    schedule = fixed.zb_h2(problem)
    validate(problem, schedule)
    timeline = simulate(problem, schedule)
    assert timeline.makespan_ns == (3 * m + p - 1) * 1000
    assert timeline.peak_memory_bytes == (2 * p - 1,) * p
    idle = [spans[-1].end_ns - spans[0].start_ns - 3 * m * 1000 for spans in timeline.ranks]
    assert idle == [0] * p


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_dualpipe_v_row(p: int, m: int) -> None:
    problem = make_problem(Pattern.WAVE.positions(p, 2), m)
    schedule = fixed.dualpipe_v(problem)
    validate(problem, schedule)
    timeline = simulate(problem, schedule)
    assert timeline.makespan_ns == (6 * m + p - 1) * 1000
    assert timeline.peak_memory_bytes == (2 * p + 1,) * p


@pytest.mark.parametrize("m", range(1, 9))
def test_few_microbatches_are_valid(m: int) -> None:
    one, wave = make_problem(range(4), m), make_problem(Pattern.WAVE.positions(4, 2), m)
    validate(one, fixed.zb_h2(one))
    validate(wave, fixed.dualpipe_v(wave))
    simulate(one, fixed.zb_h2(one))
    simulate(wave, fixed.dualpipe_v(wave))


def test_fused_stages_are_refused() -> None:
    problem = make_problem((0, 1, 1, 0), 4, fused_backward=True)
    with pytest.raises(ProblemError, match=r"fused_backward: dualpipe-v needs a backward split"):
        fixed.dualpipe_v(problem)
