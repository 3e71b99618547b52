"""The bound against all orders of tiny problems, and against what is known of larger ones."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.bounds.makespan import bounds_of, jackson_bound, lower_bound_ns
from crosspipe_ray.planners.bounds.sweeps import Jobs
from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from tests.unit.builders import link, make_problem, problems, regions_problem


def orders(rows: list[list[Op]]) -> Iterator[list[Op]]:
    """All ways to merge rows of ops, F before its I before its W."""
    if not any(rows):
        yield []
    for index, row in enumerate(rows):
        if row and all(len(rows[i]) < len(row) for i in range(index) if i // 3 == index // 3):
            rest = [other[1:] if i == index else other for i, other in enumerate(rows)]
            yield from ([row[0], *tail] for tail in orders(rest))


def shortest_ns(problem: Problem) -> int:
    """The optimum, by trying everything; ties on links go by ready time."""
    rows = [
        [
            [Op(stage, kind, m) for m in range(problem.num_microbatches)]
            for stage in stages
            for kind in (Kind.F, Kind.I, Kind.W)
        ]
        for stages in problem.stages_of_rank
    ]
    best = 1 << 60
    for first in orders(rows[0]):
        for second in orders(rows[1]) if len(rows) > 1 else [None]:
            schedule = Schedule.of([first] if second is None else [first, second])
            try:
                validate(problem, schedule)
                best = min(best, simulate(problem, schedule).makespan_ns)
            except ScheduleError:
                continue  # over memory, or in a cycle
    return best


TIMES = st.integers(0, 4)


@settings(max_examples=40)
@given(
    st.sampled_from([((0, 1), 2), ((0,), 3), ((0, 0), 1), ((0, 1, 1), 1), ((0, 1, 0), 1)]),
    st.lists(st.tuples(TIMES, TIMES, TIMES), min_size=3, max_size=3),
    st.tuples(TIMES, TIMES),
    st.integers(0, 2),
)
def test_bound_is_never_above_the_optimum(
    shape: tuple[tuple[int, ...], int],
    times: list[tuple[int, int, int]],
    delays: tuple[int, int],
    spare: int,
) -> None:
    placement, num_microbatches = shape
    data = make_problem(
        placement,
        num_microbatches,
        links=[link(0, 1, *delays), link(1, 0, *delays)] if 1 in placement else [],
        rank={"memory_limit_bytes": len(placement) + spare - 1},
    ).model_dump()
    for stage, (forward, backward, weight) in zip(data["stages"], times, strict=False):
        stage |= {
            "forward_us": forward,
            "backward_input_us": backward,
            "backward_weight_us": weight,
        }
    problem = Problem.model_validate(data)
    shortest = shortest_ns(problem)
    assert lower_bound_ns(problem) <= shortest
    if spare:  # else not even one microbatch fits
        known = greedy_order(problem, iterations=1)
        solution = solve(problem, known=known, effort=0.2, time_limit_s=60.0, workers=1)
        assert solution.lower_bound_ns <= shortest


@settings(max_examples=100)
@given(problems())
def test_heads_and_tails_hold_in_a_schedule(problem: Problem) -> None:
    bounds = bounds_of(problem)
    order = greedy_order(problem, iterations=3)
    timeline = simulate(problem, order.schedule, send_order=order.sends)
    for span in (span for spans in timeline.ranks for span in spans):
        kind = Kind.I if span.op.kind is Kind.B else span.op.kind
        assert span.op.microbatch is not None
        at = span.op.stage, kind, span.op.microbatch
        assert span.start_ns >= bounds.heads[at]
        assert timeline.makespan_ns - span.end_ns >= bounds.tails[at]


OPTIMA_1X = {  # times in T_F, by regions and (T_lat, T_bw): 8 ranks, 16 microbatches, memory 1x
    2: {(0, 0): 55, (0.25, 0.25): 57, (0.25, 2): 64, (2, 0.25): 64, (2, 2): 71},
    4: {(0, 0): 55, (0.25, 0.25): 61, (0.25, 2): 82, (2, 0.25): 82, (2, 2): 103},
}


@pytest.mark.parametrize("num_clusters", [2, 4])
@pytest.mark.parametrize("delay", list(OPTIMA_1X[2]))
def test_bound_and_greedy_meet_at_the_proven_optima(
    num_clusters: int, delay: tuple[float, float]
) -> None:
    problem = regions_problem(
        8, 16, memory=8, latency_us=delay[0], occupancy_us=delay[1], num_clusters=num_clusters
    )
    optimum_ns = OPTIMA_1X[num_clusters][delay] * 1000
    order = greedy_order(problem, time_limit_s=60.0)
    assert lower_bound_ns(problem) == optimum_ns
    assert simulate(problem, order.schedule, send_order=order.sends).makespan_ns == optimum_ns


@pytest.mark.parametrize(("delay", "optimum_us"), [((0, 0), 199), ((0.5, 4), 278)])
def test_bound_and_greedy_meet_on_waves_with_twice_the_memory(
    delay: tuple[float, float], optimum_us: float
) -> None:
    data = regions_problem(8, 32, memory=32, latency_us=delay[0], occupancy_us=delay[1])
    placement = Pattern.WAVE.positions(8, 2)
    wave = {"rank": {"memory_limit_bytes": 32}}
    problem = make_problem(placement, 32, **wave).model_copy(
        update={"ranks": data.ranks, "links": data.links}
    )
    order = greedy_order(problem, time_limit_s=60.0)
    makespan_ns = simulate(problem, order.schedule, send_order=order.sends).makespan_ns
    assert lower_bound_ns(problem) == makespan_ns == optimum_us * 1000


def test_jackson_bound_interrupts_for_a_longer_tail() -> None:
    assert jackson_bound(Jobs([0, 1, 2], [4, 2], heads=[0, 2], tails=[0, 9])) == 13
