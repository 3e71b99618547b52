"""The planner works behind the ranks: they go first, and it takes one core."""

import os
from typing import Any

import pytest
import ray

from crosspipe_ray.actors.planner import PlannerActor
from crosspipe_ray.actors.stage import StageActor
from crosspipe_ray.engine import planning
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from tests.unit.test_run_profile import config, profile

pytestmark = pytest.mark.ray
TIMEOUT_S = 30.0


def niceness(actor: Any) -> int:
    nice: int = ray.get(actor.__ray_call__.remote(lambda _: os.nice(0)), timeout=TIMEOUT_S)
    return nice


@pytest.mark.usefixtures("two_regions")
def test_the_planner_gives_way_to_the_ranks() -> None:
    assert niceness(PlannerActor.remote()) > niceness(StageActor.remote(0))


def test_the_planner_takes_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Budget] = []

    def planned(problem: Problem, *, budget: Budget, **rest: Any) -> Plan:
        given.append(budget)
        return plan(problem, **rest | {"method": "1f1b"})

    monkeypatch.setattr(planning, "plan", planned)
    planning.plan_of(config(), profile(config()).problem)
    assert [budget.workers for budget in given] == [1]
