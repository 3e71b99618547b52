"""Several methods on one problem, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crosspipe_ray.errors import InfeasibleError, InputError
from crosspipe_ray.planners.portfolio import METHODS, Attempt, Budget, check_method, plan
from crosspipe_ray.problem import Problem


def compare(
    problem: Problem, *, methods: Sequence[str] = tuple(METHODS), budget: Budget | None = None
) -> list[Attempt]:
    """Plans a problem by each method for itself.

    Args:
        problem: with stages, or with layers: then each method takes the best placement it has.
        methods: names of METHODS, or ``auto``.
        budget: of each method.

    Returns:
        One attempt per method, the shortest plan first, those that do not fit last. What one method
        proves of a placement holds for all: plans of one placement have the same lower bound.

    Raises:
        ProblemError: no such method, or none has the placement that it needs.
        InfeasibleError: none fits into memory.
    """
    for method in methods:
        check_method(method)
    made = [_attempt(problem, method, budget) for method in dict.fromkeys(methods)]
    errors = [attempt.error for attempt in made if attempt.error]
    if len(errors) == len(made):
        raise next((error for error in errors if isinstance(error, InfeasibleError)), errors[0])
    return sorted(with_shared_bounds(made), key=lambda attempt: attempt.makespan_ns)


def with_shared_bounds(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The same attempts, each with the highest bound that any of them has for its placement."""
    bounds = highest_bounds_ns(attempts)
    return [
        replace(each, plan=each.plan and each.plan.with_bound(bounds[each.plan.problem.sha256]))
        for each in attempts
    ]


def highest_bounds_ns(attempts: Sequence[Attempt]) -> dict[str, int]:
    """The highest lower bound of each placed problem, by the problem's digest."""
    bounds: dict[str, int] = {}
    for made in (attempt.plan for attempt in attempts if attempt.plan):
        digest = made.problem.sha256
        bounds[digest] = max(bounds.get(digest, 0), made.lower_bound_ns)
    return bounds


def _attempt(problem: Problem, method: str, budget: Budget | None) -> Attempt:
    attempts: list[Attempt] = []
    try:
        made = plan(problem, method=method, budget=budget, on_attempt=attempts.append)
    except (InfeasibleError, InputError) as error:
        return Attempt(method, attempts[-1].placement if attempts else "-", None, error)
    best = min(attempts, key=lambda attempt: attempt.makespan_ns)
    return Attempt(method, best.placement, made)
