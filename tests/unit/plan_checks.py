"""Plans as they are written to files, before the independent validator."""

from __future__ import annotations

import json
from typing import Any

from crosspipe_ray.plan import Plan, plan_json
from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.problem import Problem, problem_json
from tests.unit.independent_placement import placement_violations
from tests.unit.independent_validator import violations


def as_file(made: Plan) -> dict[str, Any]:
    """What the file of a plan holds."""
    return _read_back(plan_json(made))


def check_plan(made: Plan, *, asked: Problem | None = None) -> None:
    """Refuses a plan that does not hold.

    Args:
        made: the plan.
        asked: the problem that it is for, where that has layers.

    Raises:
        AssertionError: says what is wrong.
    """
    file = as_file(made)
    found = violations(file)
    if asked:
        found += placement_violations(file["problem"], _read_back(problem_json(asked)))
    if found:
        raise AssertionError(f"{made.method}: {'; '.join(found)}")


def check_attempt(attempt: Attempt, *, asked: Problem | None = None) -> None:
    """The same for what became of a method, if it is a plan."""
    if attempt.plan:
        check_plan(attempt.plan, asked=asked)


def _read_back(content: dict[str, object]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(content))
    return read
