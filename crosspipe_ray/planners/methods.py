"""The methods by name: each turns a problem with stages into an order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from crosspipe_ray.errors import InputError
from crosspipe_ray.planners import fixed
from crosspipe_ray.planners.bounds.makespan import Bounds
from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.improve.climb import improved
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.progress import OnProgress, unheard
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule

DEFAULT_TIME_LIMIT_S = 5.0
_FIRST_SHARE = 0.3  # of the time: for an order to start from
_EFFORT = 0.025  # of the solver, in its deterministic time, for an attempt of greedy
_STEPS = 10  # of improve, for an attempt of greedy, which takes about that much longer


@dataclass(frozen=True, slots=True)
class Budget:
    """What a planner may spend.

    Attributes:
        time_limit_s: wall-clock time for the whole plan.
        iterations: attempts per search, of about the same effort in all; where the clock does not
            cut in, results depend on it and the seed alone. Infinite: as many as there is time for.
        seed: of every search.
        gap: a plan within this share of its bound is good enough.
        workers: threads of the solver; its models that leave things out get one.
        on_progress: told what greedy and the solver come to, as they go on.
    """

    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    iterations: float = math.inf
    seed: int = 0
    gap: float = 0.0
    workers: int = 1
    on_progress: OnProgress = field(default=unheard, repr=False, compare=False)

    @classmethod
    def asked(
        cls,
        time_limit_s: float | None,
        iterations: int | None,
        seed: int,
        *,
        default_s: float = DEFAULT_TIME_LIMIT_S,
        **others: Any,
    ) -> Budget:
        """What somebody asks for: a number of attempts alone lets no clock cut in.

        The same plan can then be made again, on any machine.
        """
        if time_limit_s is None:
            time_limit_s = default_s if iterations is None else math.inf
        return cls(time_limit_s, iterations or math.inf, seed, **others)


@dataclass(frozen=True, slots=True)
class Found:
    """What a method came to.

    Attributes:
        lower_bound_ns: proven on the way; 0: nothing beyond `bounds`.
    """

    order: Order
    lower_bound_ns: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """A named way to a schedule.

    Attributes:
        pattern: the placement that it needs; None: any.
        search: from a problem, its bounds, a budget and the best order known so far.
        is_search: whether more time helps it.
    """

    name: str
    summary: str
    pattern: Pattern | None
    search: Callable[[Problem, Bounds, Budget, Order | None], Found]
    is_search: bool = False


def _fixed(
    name: str, summary: str, pattern: Pattern, make: Callable[[Problem], Schedule]
) -> Method:
    return Method(name, summary, pattern, lambda problem, *_: Found(Order(make(problem))))


def _greedy(problem: Problem, bounds: Bounds, budget: Budget, _: Order | None) -> Found:
    order = greedy_order(
        problem,
        time_limit_s=budget.time_limit_s,
        iterations=budget.iterations,
        seed=budget.seed,
        gap=budget.gap,
        bounds=bounds,
        on_progress=budget.on_progress,
    )
    return Found(order)


def _improve(problem: Problem, bounds: Bounds, budget: Budget, known: Order | None) -> Found:
    started = time.monotonic()
    known = known or _first(problem, bounds, budget)
    order = improved(
        problem,
        known,
        time_limit_s=budget.time_limit_s - (time.monotonic() - started),
        iterations=_STEPS * budget.iterations,
        seed=budget.seed,
        enough_ns=bounds.makespan_ns * (1 + budget.gap),
    )
    return Found(order)


def _first(problem: Problem, bounds: Bounds, budget: Budget) -> Order:
    """An order to start from."""
    share = replace(budget, time_limit_s=_FIRST_SHARE * budget.time_limit_s)
    return _greedy(problem, bounds, share, None).order


def _optimal(problem: Problem, bounds: Bounds, budget: Budget, known: Order | None) -> Found:
    if find_spec("ortools") is None:
        raise InputError("method 'optimal': needs OR-Tools; pip install ortools")
    started = time.monotonic()
    known = known or _first(problem, bounds, budget)
    solution = solve(
        problem,
        known=known,
        time_limit_s=budget.time_limit_s - (time.monotonic() - started),
        effort=_EFFORT * budget.iterations,
        workers=budget.workers,
        seed=budget.seed,
        gap=budget.gap,
        bounds=bounds,
        on_progress=budget.on_progress,
    )
    return Found(solution.order, solution.lower_bound_ns)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _fixed("gpipe", "all forwards, then all backwards", Pattern.ONE_PER_RANK, fixed.gpipe),
        _fixed(
            "1f1b",
            "one forward, one backward",
            Pattern.ONE_PER_RANK,
            fixed.one_forward_one_backward,
        ),
        _fixed("interleaved", "1f1b over stages in a loop", Pattern.LOOP, fixed.interleaved),
        _fixed("zb-h1", "split backward in the memory of 1f1b", Pattern.ONE_PER_RANK, fixed.zb_h1),
        _fixed("zb-h2", "no bubble, for twice the memory", Pattern.ONE_PER_RANK, fixed.zb_h2),
        _fixed("zb-v", "split backward over stages in a wave", Pattern.WAVE, fixed.zb_v),
        _fixed("dualpipe-v", "DeepSeek's wave, its pairs in turn", Pattern.WAVE, fixed.dualpipe_v),
        Method(
            "crosspipe-greedy",
            "the paper's Algorithm 1; any placement",
            None,
            lambda problem, *_: Found(crosspipe_greedy(problem)),
        ),
        Method("greedy", "knows links and memory; any placement", None, _greedy, is_search=True),
        Method(
            "improve", "moves on the critical path; any placement", None, _improve, is_search=True
        ),
        Method("optimal", "a solver proves it; any placement", None, _optimal, is_search=True),
    )
}
