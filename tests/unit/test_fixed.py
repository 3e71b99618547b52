"""The schedules' formulas (table in `planners.fixed`) and their texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from crosspipe_ray.errors import ProblemError
from crosspipe_ray.lowering import check_messages_fit
from crosspipe_ray.planners import fixed
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.schedule_csv import to_csv
from crosspipe_ray.simulate import simulate
from tests.unit.builders import make_problem, problems, with_message_memory

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(1, 1), (1, 4), (2, 3), (2, 8), (3, 6), (4, 8), (4, 16), (8, 16)]

Planner = Callable[[Problem], Schedule]


def patterned(pattern: Pattern, num_ranks: int, num_microbatches: int, *, visits: int) -> Problem:
    return make_problem(pattern.positions(num_ranks, visits), num_microbatches)


def check_row(
    problem: Problem, planner: Planner, *, makespan: int, in_flight: Callable[[int], int]
) -> None:
    """A row of the table: makespan in op times, in-flight stages per rank."""
    schedule = planner(problem)
    validate(problem, schedule)
    timeline = simulate(problem, schedule)
    assert timeline.makespan_ns == makespan * 1000
    assert timeline.peak_memory_bytes == tuple(in_flight(r) for r in range(len(problem.ranks)))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_row(p: int, m: int) -> None:
    problem = patterned(Pattern.ONE_PER_RANK, p, m, visits=1)
    check_row(problem, fixed.gpipe, makespan=3 * (m + p - 1), in_flight=lambda _: m)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_row(p: int, m: int) -> None:
    problem = patterned(Pattern.ONE_PER_RANK, p, m, visits=1)
    planner = fixed.one_forward_one_backward
    check_row(problem, planner, makespan=3 * (m + p - 1), in_flight=lambda r: min(m, p - r))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zb_h1_row(p: int, m: int) -> None:
    problem = patterned(Pattern.ONE_PER_RANK, p, m, visits=1)
    check_row(problem, fixed.zb_h1, makespan=3 * m + p - 1, in_flight=lambda _: min(m, p))


@pytest.mark.parametrize(("p", "m"), [size for size in SIZES if size[0] > 1])
def test_zb_v_row(p: int, m: int) -> None:
    problem = patterned(Pattern.WAVE, p, m, visits=2)
    check_row(problem, fixed.zb_v, makespan=6 * m + p - 1, in_flight=lambda _: 2 * min(m, p))


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize(("p", "m"), [(2, 4), (2, 8), (3, 6), (4, 4), (4, 8), (8, 16)])
def test_interleaved_row(p: int, m: int, v: int) -> None:
    problem = patterned(Pattern.LOOP, p, m, visits=v)
    check_row(
        problem,
        fixed.interleaved,
        makespan=3 * (v * m + p - 1),
        in_flight=lambda r: min(v * m, (v + 1) * p - 2 * r - 1),
    )


@pytest.mark.parametrize("m", range(1, 8))
def test_zb_v_of_few_microbatches_is_valid(m: int) -> None:
    problem = patterned(Pattern.WAVE, 4, m, visits=2)
    validate(problem, fixed.zb_v(problem))


@pytest.mark.parametrize(
    ("name", "planner", "pattern", "num_microbatches"),
    [
        ("gpipe", fixed.gpipe, Pattern.ONE_PER_RANK, 6),
        ("1f1b", fixed.one_forward_one_backward, Pattern.ONE_PER_RANK, 6),
        ("zb-h1", fixed.zb_h1, Pattern.ONE_PER_RANK, 6),
        ("zb-v", fixed.zb_v, Pattern.WAVE, 6),
        ("interleaved", fixed.interleaved, Pattern.LOOP, 8),  # needs a multiple of the ranks
    ],
)
def test_text_of_four_ranks(
    name: str, planner: Planner, pattern: Pattern, num_microbatches: int
) -> None:
    visits = 1 if pattern is Pattern.ONE_PER_RANK else 2
    problem = patterned(pattern, 4, num_microbatches, visits=visits)
    assert to_csv(planner(problem)) == (GOLDEN / f"{name}_4x{num_microbatches}.csv").read_text()


def test_stages_may_be_on_any_rank() -> None:
    problem = make_problem((2, 0, 1), 4)
    validate(problem, fixed.zb_h1(problem))
    assert simulate(problem, fixed.zb_h1(problem)).makespan_ns == (3 * 4 + 2) * 1000


def test_forward_only_runs_on_any_placement() -> None:
    problem = make_problem((0, 1, 1, 0), 2)
    schedule = fixed.forward_only(problem)
    assert [[str(op) for op in ops] for ops in schedule.ranks] == [
        ["0F0", "3F0", "0F1", "3F1"],
        ["1F0", "2F0", "1F1", "2F1"],
    ]
    assert simulate(problem, schedule).makespan_ns > 0


def test_one_by_one_puts_off_weights() -> None:
    schedule = fixed.one_by_one(make_problem((0, 1, 0), 2))
    assert to_csv(schedule).splitlines() == [
        "0F0,2F0,2I0,0I0,0W0,2W0,0F1,2F1,2I1,0I1,0W1,2W1",
        "1F0,1I0,1W0,1F1,1I1,1W1",
    ]


@given(problems())
def test_one_by_one_needs_room_for_one_message(problem: Problem) -> None:
    tight = with_message_memory(problem, spare_bytes=0)
    schedule = fixed.one_by_one(tight)
    validate(tight, schedule)
    timeline = simulate(tight, schedule)
    check_messages_fit(tight, timeline)
    for rank, peak in zip(tight.ranks, timeline.peak_message_bytes, strict=True):
        assert rank.message_memory_limit_bytes is not None
        assert peak <= rank.message_memory_limit_bytes


@pytest.mark.parametrize(
    ("planner", "placement", "needed"),
    [
        (fixed.gpipe, (0, 1, 1, 0), "gpipe needs the placement 'one_per_rank'"),
        (fixed.one_forward_one_backward, (0, 0), "1f1b needs the placement 'one_per_rank'"),
        (fixed.zb_v, (0, 1, 0, 1), "zb-v needs the placement 'wave'"),
        (fixed.interleaved, (0, 1, 1, 0), "interleaved needs the placement 'loop'"),
        (fixed.interleaved, (0, 1), "interleaved needs the placement 'loop'"),
    ],
)
def test_other_placement_is_refused(
    planner: Planner, placement: tuple[int, ...], needed: str
) -> None:
    with pytest.raises(ProblemError, match=f"stages: {needed}"):
        planner(make_problem(placement, 4))


def test_interleaved_needs_a_multiple_of_the_ranks() -> None:
    with pytest.raises(ProblemError, match=r"num_microbatches: .* multiple of the 2 ranks, got 3"):
        fixed.interleaved(make_problem((0, 1, 0, 1), 3))


@pytest.mark.parametrize(("planner", "placement"), [(fixed.zb_h1, (0, 1)), (fixed.zb_v, (0, 0))])
def test_split_backward_is_needed(planner: Planner, placement: tuple[int, ...]) -> None:
    problem = make_problem(placement, 2, fused_backward=True)
    with pytest.raises(ProblemError, match=r"stages\.0\.fused_backward: zb-"):
        planner(problem)
