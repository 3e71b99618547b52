"""What the ends of a step refuse, no schedule can do."""

import math

import pytest
from hypothesis import given, settings
from ortools.sat.python import cp_model

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.cpsat.best import Limits
from crosspipe_ray.planners.cpsat.ends import EndsModel, is_bound_by_channels, tune
from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem
from tests.unit.builders import link, make_problem, problems, regions_problem


def is_refused(problem: Problem, limit_ns: int, reach_ns: int, *, more_ns: int = 0) -> bool:
    """By a model that was built for a limit of more."""
    costs = stage_costs(problem)
    ends = EndsModel(problem, costs, bounds_of(problem, costs), limit_ns + more_ns, reach_ns)
    solver = Limits(deadline=math.inf, effort=math.inf, workers=1, seed=0).solver(0.5)
    tune(solver)
    return solver.solve(ends.within(limit_ns)) == cp_model.INFEASIBLE


def busy_borders(
    num_microbatches: int, *, latency_us: int = 25, memory: int | None = None
) -> Problem:
    """A wave over four regions whose borders carry messages all the time."""
    stage = {"forward_us": 50, "backward_input_us": 64, "backward_weight_us": 24}
    delays = {"latency_us": latency_us, "occupancy_us": 200, "num_clusters": 4}
    row = regions_problem(8, num_microbatches, memory=memory, **delays)
    wave = make_problem(Pattern.WAVE.positions(8, 2), num_microbatches, stage=stage)
    return wave.model_copy(update={"ranks": row.ranks, "links": row.links})


@settings(max_examples=100)
@given(problems())
def test_what_a_schedule_does_is_not_refused(problem: Problem) -> None:
    known = greedy_order(problem, iterations=5)
    solution = solve(problem, known=known, effort=0.1, time_limit_s=60.0, workers=1)
    limit_ns = solution.makespan_ns
    for share, more_ns in ((0.0, 0), (0.3, 1), (1.0, limit_ns // 3)):
        assert not is_refused(problem, limit_ns, int(share * limit_ns) + 1, more_ns=more_ns)


def test_busy_borders_lose_time_that_heads_and_tails_do_not_see() -> None:
    problem = busy_borders(6)
    solution = solve(problem, known=greedy_order(problem), time_limit_s=60.0, workers=1)
    bound_ns, reach_ns = bounds_of(problem).makespan_ns, solution.makespan_ns
    assert solution.makespan_ns == solution.lower_bound_ns
    assert is_refused(problem, int(1.01 * bound_ns), reach_ns)
    assert is_refused(problem, int(1.01 * bound_ns), reach_ns, more_ns=bound_ns // 20)
    assert not is_refused(problem, solution.makespan_ns, reach_ns)


@pytest.mark.parametrize(
    ("latency_us", "share", "reach"), [(25, 1.008, 0.25), (25, 1.012, 0.28), (200, 1.014, 0.4)]
)
def test_ends_refuse_soon_what_the_whole_step_does_not(
    latency_us: int, share: float, reach: float
) -> None:
    problem = busy_borders(32, latency_us=latency_us, memory=32)
    bound_ns = bounds_of(problem).makespan_ns
    assert is_refused(problem, int(share * bound_ns), int(reach * bound_ns))


@pytest.mark.parametrize(("placement", "wanted"), [((0, 1), False), ((0, 1, 1, 0), True)])
def test_a_channel_of_several_stages_with_more_work_than_any_rank(
    placement: tuple[int, ...], wanted: bool
) -> None:
    links = [link(0, 1, 0, 4), link(1, 0, 0, 4)]
    problem = make_problem(placement, 2, links=links)
    assert is_bound_by_channels(problem, stage_costs(problem)) is wanted
