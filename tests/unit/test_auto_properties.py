"""What must hold of `auto` whatever the problem: more is never worse, and names do not matter."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.planners.bounds.makespan import lower_bound_ns
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import problems, renamed

BUDGET = Budget(iterations=3, time_limit_s=60.0)


def check_not_worse(more: Problem, less: Problem) -> None:
    """More resources cost no more than the plan's own stated gap."""
    with_more, with_less = plan(more, budget=BUDGET), plan(less, budget=BUDGET)
    most_ns = with_less.timeline.makespan_ns * (1 + with_more.gap)
    assert with_more.timeline.makespan_ns <= most_ns + 1  # of rounding


@settings(max_examples=30)
@given(problems(), st.integers(1, 8))
def test_more_memory_is_not_worse(problem: Problem, num_bytes: int) -> None:
    data = problem.model_dump()
    for rank in data["ranks"]:
        if rank["memory_limit_bytes"] is not None:
            rank["memory_limit_bytes"] += num_bytes
    check_not_worse(Problem.model_validate(data), problem)


@settings(max_examples=30)
@given(problems(), st.sampled_from((1.5, 2.0, 10.0)))
def test_more_bandwidth_is_not_worse(problem: Problem, times: float) -> None:
    data = problem.model_dump()
    for link in data["links"]:
        if link["bandwidth_bytes_per_s"] is not None:
            link["bandwidth_bytes_per_s"] *= times
    check_not_worse(Problem.model_validate(data), problem)


@settings(max_examples=30)
@given(problems(), st.randoms(use_true_random=False))
def test_names_of_ranks_do_not_matter(problem: Problem, rng: Any) -> None:
    names = list(range(len(problem.ranks)))
    rng.shuffle(names)
    other = renamed(problem, names)
    assert lower_bound_ns(other) == lower_bound_ns(problem)
    check_not_worse(other, problem)
    check_not_worse(problem, other)
