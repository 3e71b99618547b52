"""From a problem to a plan: the methods by name, and `auto`, which tries all that fit and takes the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from crosspipe_ray.costs import check_memory_suffices
from crosspipe_ray.errors import InfeasibleError, InputError, ProblemError, ScheduleError
from crosspipe_ray.plan import Plan, Status
from crosspipe_ray.planners import fixed
from crosspipe_ray.planners.bounds import lower_bound_ns
from crosspipe_ray.planners.greedy import DEFAULT_ITERATIONS, greedy
from crosspipe_ray.planners.placement import Pattern, place
from crosspipe_ray.problem import Problem
from crosspipe_ray.planners.network import Order
from crosspipe_ray.schedule import Schedule, validate
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a planner may spend.

    Attributes:
        time_limit_s: wall-clock time for the whole plan.
        iterations: attempts per search; where the clock does not cut in, results depend on it and
        the seed alone.
        seed: of every search.
    """

    time_limit_s: float = 5.0
    iterations: int = DEFAULT_ITERATIONS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """A named way to a schedule.

    Attributes:
        pattern: the placement that it needs; None: any.
    """

    name: str
    summary: str
    pattern: Pattern | None
    schedule: Callable[[Problem, Budget], Schedule]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one method on one placement: a plan, or the reason why not."""

    method: str
    placement: str
    plan: Plan | None
    error: InfeasibleError | InputError | None = None


def _greedy(problem: Problem, budget: Budget) -> Schedule:
    return greedy(
        problem, time_limit_s=budget.time_limit_s, iterations=budget.iterations, seed=budget.seed
    )


def _fixed(schedule: Callable[[Problem], Schedule]) -> Callable[[Problem, Budget], Schedule]:
    """A fixed schedule needs no budget."""
    return lambda problem, _: schedule(problem)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "gpipe", "all forwards, then all backwards", Pattern.ONE_PER_RANK, _fixed(fixed.gpipe)
        ),
        Method(
            "1f1b",
            "one forward, one backward",
            Pattern.ONE_PER_RANK,
            _fixed(fixed.one_forward_one_backward),
        ),
        Method(
            "interleaved", "1f1b over stages in a loop", Pattern.LOOP, _fixed(fixed.interleaved)
        ),
        Method(
            "zb-h1",
            "split backward in the memory of 1f1b",
            Pattern.ONE_PER_RANK,
            _fixed(fixed.zb_h1),
        ),
        Method("zb-v", "split backward over stages in a wave", Pattern.WAVE, _fixed(fixed.zb_v)),
        Method("greedy", "knows links and memory; any placement", None, _greedy),
    )
}


def plan(
    problem: Problem,
    *,
    method: str = AUTO,
    budget: Budget | None = None,
    patterns: Sequence[Pattern] = tuple(Pattern),
    on_attempt: Callable[[Attempt], None] = lambda attempt: None,
) -> Plan:
    """Plans a problem.

    Args:
        problem: with stages, or with layers to be placed.
        method: a name of METHODS, or ``auto``: every method that fits is tried, the shortest
        makespan wins.
        budget: time, iterations and seed.
        patterns: placements to try for a problem with layers.
        on_attempt: told of each method and placement as it is done.

    Raises:
        ProblemError: no such method, or the problem has not the placement that the method needs.
        InfeasibleError: memory is too small.
    """
    if method != AUTO and method not in METHODS:
        raise ProblemError(
            f"--method {method}: no such method; there are {', '.join([*METHODS, AUTO])}"
        )
    budget = budget or Budget()
    started = time.monotonic()
    attempts = []
    for attempt in _attempts(problem, method, budget, patterns, started):
        on_attempt(attempt)
        attempts.append(attempt)
    return _best(attempts, method, wall_s=time.monotonic() - started)


def _attempts(
    problem: Problem, method: str, budget: Budget, patterns: Sequence[Pattern], started: float
) -> Iterator[Attempt]:
    """Every method that is asked for on every placement that fits it."""
    chosen = list(METHODS.values()) if method == AUTO else [METHODS[method]]
    pairs = [(each, pattern) for each in chosen for pattern in _placements(problem, each, patterns)]
    for done, (each, pattern) in enumerate(pairs):
        left_s = max(0.0, budget.time_limit_s - (time.monotonic() - started))
        share = replace(budget, time_limit_s=left_s / (len(pairs) - done))
        yield _attempt(problem, each, pattern, share)


def _placements(
    problem: Problem, method: Method, patterns: Sequence[Pattern]
) -> list[Pattern | None]:
    """Placements to try: the problem's own (None), or the patterns that the method can use on its layers."""
    if problem.stages:
        return [None]
    size = problem.num_stages_per_rank
    return [
        pattern
        for pattern in patterns
        if method.pattern in (None, pattern) and (size is None or pattern.allows(size))
    ]


def _attempt(problem: Problem, method: Method, pattern: Pattern | None, budget: Budget) -> Attempt:
    """One method on one placement; what the user cannot have is a reason, not the end of `auto`."""
    placement = pattern.value if pattern else "as given"
    started = time.monotonic()
    try:
        placed = problem if pattern is None else _placed(problem, pattern)
        check_memory_suffices(placed)
        schedule = method.schedule(placed, budget)
        made = _plan_of(placed, schedule, method.name, budget, started)
    except (InfeasibleError, InputError) as error:
        return Attempt(method.name, placement, None, error)
    return Attempt(method.name, placement, made)


def _placed(problem: Problem, pattern: Pattern) -> Problem:
    size = problem.num_stages_per_rank or (1 if pattern is Pattern.ONE_PER_RANK else 2)
    return place(problem, pattern, num_stages_per_rank=size)


def _plan_of(
    problem: Problem, schedule: Schedule, method: str, budget: Budget, started: float
) -> Plan:
    """Checks a schedule, runs it on the clock, and says how good it is."""
    try:
        validate(problem, schedule)
    except (
        ScheduleError
    ) as error:  # the planners order ops rightly; what can be wrong is a fixed method's memory
        raise InfeasibleError(f"{method} does not fit: {error}") from None
    timeline = simulate(problem, schedule)
    _check_messages(problem, timeline, method)
    bound_ns, wall_s = lower_bound_ns(problem), time.monotonic() - started
    cut_short: Status = "time_limit" if wall_s > budget.time_limit_s else "gap"
    status: Status = "proven" if timeline.makespan_ns <= bound_ns else cut_short
    return Plan(problem, schedule, timeline, method, status, budget.seed, bound_ns, wall_s)


def _check_messages(problem: Problem, timeline: Timeline, method: str) -> None:
    for rank, peak in enumerate(timeline.peak_message_bytes):
        limit = problem.ranks[rank].message_memory_limit_bytes
        if limit is not None and peak > limit:
            raise InfeasibleError(
                f"{method} does not fit: rank {rank} ({problem.ranks[rank].cluster}) lets {peak} bytes of received "
                f"inputs wait, {peak - limit} more than its message_memory_limit_bytes {limit}"
            )


def _best(attempts: Sequence[Attempt], method: str, *, wall_s: float) -> Plan:
    """The shortest plan; without any, the reason of the last attempt (its placement asks for least memory)."""
    plans = [attempt.plan for attempt in attempts if attempt.plan]
    if plans:
        return replace(min(plans, key=lambda made: made.timeline.makespan_ns), wall_s=wall_s)
    if not attempts:
        raise ProblemError(
            f"num_stages_per_rank: {method} has no placement with that many stages on a rank"
        )
    reasons = [attempt.error for attempt in attempts if attempt.error]
    raise next(
        (error for error in reversed(reasons) if isinstance(error, InfeasibleError)), reasons[-1]
    )
