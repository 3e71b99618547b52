"""What must hold of `auto` whatever the problem: more is hardly worse, and names do not matter."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.planners.bounds.makespan import lower_bound_ns
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import AUTO, Attempt, Budget, plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import link, problem_data, problems, regions_problem, renamed

BUDGET = Budget(iterations=3, time_limit_s=60.0)
MOST = 1.05  # times as long, as no search of three attempts is perfect; the worst of 5500 was 1.019


def check_not_worse(more: Problem, less: Problem) -> None:
    """Any order of the one problem is an order of the other, and takes no longer there."""
    with_more, with_less = plan(more, budget=BUDGET), plan(less, budget=BUDGET)
    assert with_more.lower_bound_ns <= with_less.timeline.makespan_ns
    assert with_more.timeline.makespan_ns <= MOST * with_less.timeline.makespan_ns


def makespans_by_method(problem: Problem) -> dict[str, float]:
    """Of all methods that `auto` tries, and its own; infinite where there is no plan."""
    made: dict[str, float] = {}

    def note(attempt: Attempt) -> None:
        made[attempt.method] = attempt.makespan_ns

    made[AUTO] = plan(problem, budget=BUDGET, on_attempt=note).timeline.makespan_ns
    return made


@pytest.mark.parametrize("num_clusters", [2, 4])
def test_room_for_each_microbatch_more_is_not_worse(num_clusters: int) -> None:
    stage = {"backward_input_us": 1.28, "backward_weight_us": 0.48}
    regions = partial(
        regions_problem, 4, 8, latency_us=1.5, occupancy_us=0.5, num_clusters=num_clusters
    )
    plans = [plan(regions(memory=most, stage=stage), budget=BUDGET) for most in range(1, 9)]
    makespans = [made.timeline.makespan_ns for made in plans]
    assert makespans == sorted(makespans, reverse=True)


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
    for each in data["links"]:
        if each["bandwidth_bytes_per_s"] is not None:
            each["bandwidth_bytes_per_s"] *= times
        if each["bandwidth_curve"] is not None:
            each["bandwidth_curve"] = [
                (size, times * rate) for size, rate in each["bandwidth_curve"]
            ]
    check_not_worse(Problem.model_validate(data), problem)


@settings(max_examples=100)
@given(problems(), st.randoms(use_true_random=False))
def test_names_of_ranks_do_not_matter(problem: Problem, rng: Any) -> None:
    names = list(range(len(problem.ranks)))
    rng.shuffle(names)
    other = renamed(problem, names)
    assert lower_bound_ns(other) == lower_bound_ns(problem)
    assert makespans_by_method(other) == makespans_by_method(problem)


def crowded(rng: random.Random) -> Problem:
    """Many equal ops on ranks that share a channel: most choices are between equals."""
    num_ranks, pattern = rng.choice((4, 6, 8)), rng.choice((Pattern.WAVE, Pattern.LOOP))
    stage = {"forward_us": 2, "backward_input_us": rng.choice((2, 3))}
    positions = pattern.positions(num_ranks, rng.choice((2, 3)))
    data = problem_data(positions, rng.choice((4, 6, 8)), stage=stage)
    for number, rank in enumerate(data["ranks"]):
        rank["cluster"] = f"c{2 * number // num_ranks}"
    data["links"] = [
        {**link(src, dst, rng.choice((0, 1, 4)), rng.choice((1, 2))), "channel": "shared"}
        for src, dst in (("c0", "c1"), ("c1", "c0"))
    ]
    return Problem.model_validate(data)


@pytest.mark.parametrize("seed", range(8))
def test_names_do_not_decide_between_equals(seed: int) -> None:
    rng = random.Random(seed)
    problem = crowded(rng)
    names = rng.sample(range(len(problem.ranks)), len(problem.ranks))
    assert makespans_by_method(renamed(problem, names)) == makespans_by_method(problem)
