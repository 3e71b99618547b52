"""Plans of the problems that the benchmark measures, by few attempts."""

from __future__ import annotations

from functools import partial

import pytest

from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from tests.benchmarks.planner_instances import Instances, heterogeneous, instance, layers_problem
from tests.unit.plan_checks import check_attempt

BUDGET = Budget(iterations=3, time_limit_s=60.0)
ONE_PER_RANK = Instances(sizes=((8, 16), (2, 8), (12, 8)))
WAVE = Instances(sizes=((8, 16),), pattern=Pattern.WAVE)


@pytest.mark.parametrize(
    "problem",
    [
        *(instance(ONE_PER_RANK, seed) for seed in range(6)),
        *(instance(WAVE, seed) for seed in range(3)),
        *(heterogeneous(seed) for seed in range(6)),
    ],
    ids=lambda problem: f"{len(problem.stages)}x{problem.num_microbatches}",
)
def test_plans_hold(problem: Problem) -> None:
    plan(problem, budget=BUDGET, on_attempt=check_attempt)


def test_plans_of_many_layers_hold() -> None:
    problem = layers_problem(4, (2.0, 0.25))
    plan(problem, budget=BUDGET, on_attempt=partial(check_attempt, asked=problem))
