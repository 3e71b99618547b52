"""B's in place of I's and W's that stand side by side."""

import pytest
from hypothesis import given

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.merging import merged
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from tests.unit.builders import link, make_problem, make_schedule, problems


def merged_text(problem: Problem, *ranks: str) -> list[str]:
    order = merged(problem, stage_costs(problem), Order(make_schedule(*ranks)), time_limit_s=60.0)
    return [" ".join(map(str, ops)) for ops in order.schedule.ranks]


def test_each_pair_saves_the_fixed_cost_of_an_op() -> None:
    problem = make_problem((0,), 2, rank={"op_overhead_us": 4})
    assert merged_text(problem, "0F0 0I0 0W0 0F1 0I1 0W1") == ["0F0 0B0 0F1 0B1"]


def test_a_gradient_that_is_waited_for_does_not_wait_for_its_w() -> None:
    # Rank 0 waits for the gradient, and no rank waits for rank 0.
    links = [link(0, 1, 0, 0), link(1, 0, 0, 0)]
    problem = make_problem((0, 1), 1, rank={"op_overhead_us": 0.5}, links=links)
    assert merged_text(problem, "0F0 0I0 0W0", "1F0 1I0 1W0") == ["0F0 0B0", "1F0 1I0 1W0"]


@pytest.mark.parametrize("op_overhead_us", [0, 0.001])
def test_without_fixed_cost_to_speak_of_nothing_is_merged(op_overhead_us: float) -> None:
    problem = make_problem((0,), 1, rank={"op_overhead_us": op_overhead_us})
    assert merged_text(problem, "0F0 0I0 0W0") == ["0F0 0I0 0W0"]


@given(problems())
def test_merging_is_valid_and_never_longer(problem: Problem) -> None:
    order = greedy_order(problem, iterations=3)
    found = merged(problem, stage_costs(problem), order, time_limit_s=60.0)
    validate(problem, found.schedule)
    assert found.timeline(problem).makespan_ns <= order.timeline(problem).makespan_ns


@pytest.mark.parametrize("method", ["greedy", "improve", "optimal", "auto"])
def test_plans_of_searches_run_b_where_that_is_shorter(method: str) -> None:
    problem = make_problem((0,), 4, rank={"op_overhead_us": 4})
    made = plan(problem, method=method, budget=Budget(time_limit_s=60.0, iterations=20))
    assert made.timeline.makespan_ns == made.lower_bound_ns == 4 * (1 + 4 + 2 + 4) * 1000


def test_order_that_fits_its_message_memory_still_does() -> None:
    # With B's a third input would wait on rank 1.
    stage = {"forward_us": 2, "backward_input_us": 2}
    rank = {"op_overhead_us": 0.5, "message_memory_limit_bytes": 2000}
    links = [link(0, 1, 2, 0), link(1, 0, 0, 0)]
    problem = make_problem((0, 1), 8, stage=stage, rank=rank, links=links)
    made = plan(problem, method="greedy", budget=Budget(time_limit_s=60.0, iterations=1))
    assert max(made.timeline.peak_message_bytes) <= 2000
