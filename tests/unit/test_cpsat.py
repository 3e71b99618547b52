import pytest
from hypothesis import given, settings

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.errors import InputError
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.cpsat.search import Solution, solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import make_problem, problems, regions_problem


def makespan_ns(problem: Problem, order: Order) -> int:
    validate(problem, order.schedule)
    return simulate(problem, order.schedule, send_order=order.sends).makespan_ns


def solved(problem: Problem, *, time_limit_s: float = 30.0) -> Solution:
    known = greedy_order(problem, iterations=1)
    return solve(problem, known=known, time_limit_s=time_limit_s, workers=1)


@settings(max_examples=60)
@given(problems())
def test_solution_is_valid_and_between_its_bound_and_greedy(problem: Problem) -> None:
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, time_limit_s=0.5, workers=1)
    assert makespan_ns(problem, solution.order) == solution.makespan_ns
    assert solution.makespan_ns <= makespan_ns(problem, known)
    assert bounds_of(problem).makespan_ns <= solution.lower_bound_ns <= solution.makespan_ns


def test_known_optimum_is_proven() -> None:
    problem = regions_problem(4, 8, memory=4, latency_us=2.0, occupancy_us=0.25)
    solution = solved(problem)
    assert solution.makespan_ns == solution.lower_bound_ns


def test_bound_rises_where_heads_and_tails_are_not_enough() -> None:
    problem = make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 3})
    solution = solved(problem)
    assert solution.makespan_ns == solution.lower_bound_ns
    assert solution.lower_bound_ns > bounds_of(problem, stage_costs(problem)).makespan_ns


def test_gap_ends_the_search_early() -> None:
    problem = regions_problem(4, 8)
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, gap=1.0, time_limit_s=30.0)
    assert solution.order == known


def test_progress_is_told() -> None:
    problem = make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 3})
    seen: list[tuple[int, int]] = []
    solve(
        problem,
        known=greedy_order(problem, iterations=1),
        time_limit_s=30.0,
        workers=1,
        on_progress=lambda makespan, bound: seen.append((makespan, bound)),
    )
    assert seen
    assert all(bound <= makespan for makespan, bound in seen)
    assert seen == sorted(seen, key=lambda pair: (-pair[0], pair[1]))


def test_without_ortools_the_method_says_so_and_auto_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crosspipe_ray.planners.methods.find_spec", lambda _: None)
    problem = regions_problem(2, 2)
    with pytest.raises(InputError, match="needs OR-Tools"):
        plan(problem, method="optimal")
    assert plan(problem).timeline.makespan_ns > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_same_effort_and_seed_same_solution(workers: int) -> None:
    problem = regions_problem(4, 8, memory=3, latency_us=2.0, occupancy_us=0.25)
    known = greedy_order(problem, iterations=1)
    first, again = (
        solve(problem, known=known, effort=0.3, time_limit_s=60.0, workers=workers)
        for _ in range(2)
    )
    assert first == again


def test_effort_ends_the_search() -> None:
    problem = make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 3})
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, effort=0.0, time_limit_s=60.0, workers=1)
    assert solution.order == known


@pytest.mark.parametrize(("time_limit_s", "status"), [(0.0, "time_limit"), (60.0, "gap")])
def test_only_the_clock_puts_it_out_of_time(time_limit_s: float, status: str) -> None:
    stage = {"backward_input_us": 1.3}
    problem = make_problem((0, 1, 1, 0), 8, rank={"memory_limit_bytes": 3}, stage=stage)
    budget = Budget(iterations=1, time_limit_s=time_limit_s)
    assert plan(problem, method="optimal", budget=budget).status == status


def test_meetings_of_forwards_and_backwards_are_settled_with_little_effort() -> None:
    # By branching on starts the same proof takes ten times the effort.
    stage = {"forward_us": 100, "backward_input_us": 128, "backward_weight_us": 48}
    problem = regions_problem(6, 24, memory=6, latency_us=50, occupancy_us=50, stage=stage)
    solution = solve(problem, known=greedy_order(problem), effort=0.4, time_limit_s=600.0)
    assert bounds_of(problem).makespan_ns < solution.lower_bound_ns == solution.makespan_ns


def test_a_rounded_nanosecond_that_b_saves_costs_the_proof_no_more_than_that() -> None:
    stage = {"forward_us": 1, "backward_input_us": 1.0006, "backward_weight_us": 1.0006}  # B: 2.001
    problem = make_problem((0, 1, 1, 0), 3, stage=stage, rank={"memory_limit_bytes": 3})
    solution = solve(problem, known=greedy_order(problem))
    bound_ns = bounds_of(problem, stage_costs(problem)).makespan_ns
    assert bound_ns < solution.makespan_ns - 12 <= solution.lower_bound_ns < solution.makespan_ns
