"""Orders that begin and end as the ends of a step allow."""

import itertools
import math

import numpy as np
import pytest
from ortools.sat.python import cp_model

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.cpsat.best import Best, Limits
from crosspipe_ray.planners.cpsat.borders import Answer, Questions, completed
from crosspipe_ray.planners.cpsat.ends import EndsModel, tune
from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.progress import unheard
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from tests.unit.test_cpsat_ends import busy_borders


def solved_ends(problem: Problem, limit_ns: int) -> tuple[EndsModel, cp_model.CpSolver]:
    costs, bounds = stage_costs(problem), bounds_of(problem)
    model = EndsModel(problem, costs, bounds, limit_ns, bounds.makespan_ns // 3)
    solver = Limits(deadline=math.inf, effort=math.inf, workers=1, seed=0).solver(10.0)
    tune(solver)
    assert solver.solve(model.model) == cp_model.OPTIMAL
    return model, solver


@pytest.fixture
def lead() -> Order:
    return greedy_order(busy_borders(2), iterations=1)


def test_starts_of_a_solution_follow_the_way_of_each_microbatch() -> None:
    problem = busy_borders(6)
    limit_ns = int(1.05 * bounds_of(problem).makespan_ns)
    model, solver = solved_ends(problem, limit_ns)
    starts = model.starts_ns(solver)
    way = [(stage, Kind.F) for stage in range(16)]
    way += [(stage, Kind.I) for stage in reversed(range(16))]
    for before, after in itertools.pairwise(way):
        assert (starts[before] + 50_000 <= starts[after]).all()
    assert all((np.diff(each) > 0).all() for each in starts.values())
    assert max(each.max() for each in starts.values()) < limit_ns


def test_an_order_by_the_ends_is_valid_and_shorter_than_one_by_the_bound_alone() -> None:
    problem = busy_borders(16, latency_us=200)
    costs, bounds = stage_costs(problem), bounds_of(problem)
    known = greedy_order(problem, iterations=1)
    best = Best(problem, costs, bounds, known, unheard)
    limit_ns = int(1.03 * bounds.makespan_ns)
    model, solver = solved_ends(problem, limit_ns)
    lead = completed(best, model.starts_ns(solver), limit_ns)
    validate(problem, lead.schedule)
    assert best.take(lead)
    assert best.makespan_ns < known.timeline(problem).makespan_ns


def test_moves_from_a_lead_and_refusals_close_in_on_the_optimum() -> None:
    problem = busy_borders(8, latency_us=200)
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, effort=1.0, time_limit_s=600.0)
    assert solution.makespan_ns < known.timeline(problem).makespan_ns
    assert solution.lower_bound_ns > bounds_of(problem).makespan_ns
    again = solve(problem, known=known, effort=1.0, time_limit_s=600.0)
    assert again == solution


def test_a_makespan_that_is_not_refused_waits_until_half_of_it_is() -> None:
    questions = Questions()
    assert questions.next_ns(1_000_000, 1_020_000) == 1_020_000
    questions.follow(1_020_000, Answer(), is_whole=True)
    assert questions.next_ns(1_000_000, 1_020_000) == 1_010_000
    questions.follow(1_010_000, Answer(is_refused=True), is_whole=True)
    assert questions.next_ns(1_010_001, 1_020_000) == 1_015_000
    patience = questions.patience
    assert questions.next_ns(1_019_500, 1_020_000) == 1_020_000  # as there is little in between
    assert questions.patience == 2 * patience


def test_what_the_ends_allow_is_asked_of_more_of_the_step(lead: Order) -> None:
    questions = Questions()
    questions.follow(1_020_000, Answer(lead=lead), is_whole=False)
    assert (questions.reach, questions.next_ns(1_000_000, 1_020_000)) == (1, 1_020_000)
    questions.follow(1_020_000, Answer(lead=lead), is_whole=True)
    assert (questions.reach, questions.next_ns(1_000_000, 1_020_000)) == (1, 1_010_000)
