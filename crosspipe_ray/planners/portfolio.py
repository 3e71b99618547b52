"""From a problem to a plan: one method by its name, or `auto`, the best of all that fit.

With layers to place, `auto` first gives each placement a short look by every method, then the best
ones a look with less work on the first ranks, then the best of all a longer one; the rest of the
time is for improving the best and for the solver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from crosspipe_ray.compiled import check_switch
from crosspipe_ray.costs import check_memory_suffices, stage_costs
from crosspipe_ray.errors import InfeasibleError, InputError, ProblemError, ScheduleError
from crosspipe_ray.lowering import check_messages_fit
from crosspipe_ray.plan import Plan
from crosspipe_ray.plan_format import Status
from crosspipe_ray.planners.bounds import Bounds, bounds_of
from crosspipe_ray.planners.candidates import Candidate, candidates
from crosspipe_ray.planners.cpsat_ends import is_bound_by_channels
from crosspipe_ray.planners.methods import METHODS, Budget, Found, Method
from crosspipe_ray.planners.network import Order
from crosspipe_ray.planners.placement import Pattern, follows
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline

__all__ = ["AUTO", "METHODS", "Attempt", "Budget", "Method", "check_method", "plan"]

AUTO = "auto"
_LOOK_ITERATIONS = 12
_LOOK_SHARE = 0.3  # of the time that is left: for a short look at every placement
_NUM_FAVOURITES = 3
_NUM_SLANTED = 5
_EQUAL_SHARE = 0.6  # of the time of a method that is asked for: for stages of equal work
_LARGE_SHARE = 0.6  # of the time that is left: for greedy, then improve, if the solver is no use
_MOST_EASY_OPS = 600  # below, the solver gains more in the same time than greedy and improve
_MOST_SOLVED_OPS = 10_000  # above, the solver finds nothing in any time that one would give it
_MOST_IMPROVED_OPS = 20_000  # above, improve is still setting out when greedy has long arrived
_MOST_FORMULA_OPS = 1_000_000  # above, each plan that is looked at takes seconds
_RULE_S = 1e-5  # for an op of a method that goes by rules, in Python


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one method on one placement: a plan, or the reason why not."""

    method: str
    placement: str
    plan: Plan | None
    error: InfeasibleError | InputError | None = None

    @property
    def makespan_ns(self) -> float:
        """Of the plan; infinite without one, so that the best come first in a sorted list."""
        return self.plan.timeline.makespan_ns if self.plan else math.inf

    def in_pieces(self, num_pieces: int) -> Attempt:
        """The same, named after the number of pieces of each microbatch."""
        if num_pieces == 1:
            return self
        return replace(self, placement=f"{self.placement} in {num_pieces}")


def plan(
    problem: Problem,
    *,
    method: str = AUTO,
    budget: Budget | None = None,
    patterns: Sequence[Pattern] = tuple(Pattern),
    on_attempt: Callable[[Attempt], None] = lambda _: None,
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
        InputError: no such method, or the problem has not the placement that the method needs; or
            the variable that decides about compilation says neither always nor never.
        InfeasibleError: memory is too small.
    """
    check_method(method)
    check_switch()
    clock = _Clock(budget or Budget())
    places = [_Place(problem, each) for each in candidates(problem, patterns)]
    attempts = []
    search = _try_all(places, clock) if method == AUTO else _try_one(places, METHODS[method], clock)
    for attempt in search:
        on_attempt(attempt)
        attempts.append(attempt)
    return _best(attempts, method, wall_s=clock.elapsed_s)


def check_method(method: str) -> None:
    """Refuses a name that is no method.

    Raises:
        ProblemError: lists those that there are.
    """
    if method != AUTO and method not in METHODS:
        known = ", ".join([*METHODS, AUTO])
        raise ProblemError(f"method '{method}': no such method; there are {known}")


class _Clock:
    """The budget and what is left of its time."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Time spent so far."""
        return time.monotonic() - self._started

    def share(self, part: float, *, iterations: int | None = None) -> Budget:
        """A part of what is left, with at most so many iterations."""
        left_s = max(0.0, self.budget.time_limit_s - self.elapsed_s)
        most = self.budget.iterations
        return replace(
            self.budget,
            time_limit_s=part * left_s,
            iterations=most if iterations is None else min(most, iterations),
        )


@dataclass(slots=True)
class _Place:
    """A placement, and the best of what was found on it."""

    origin: Problem
    candidate: Candidate
    best: Plan | None = None
    order: Order | None = None
    lower_bound_ns: int = 0
    _problem: Problem | None = None
    _bounds: Bounds | None = field(default=None, repr=False)

    @property
    def is_done(self) -> bool:
        """Whether nothing shorter can be found here."""
        return self.best is not None and self.best.status == "proven"

    def is_done_for(self, budget: Budget) -> bool:
        """Whether what was found is good enough."""
        return self.best is not None and self.best.gap <= budget.gap

    @property
    def num_ops(self) -> int:
        """Compute ops at most."""
        num_stages = len(self.origin.stages) or (
            self.candidate.num_stages_per_rank * len(self.origin.ranks)
        )
        return 3 * num_stages * self.origin.num_microbatches

    @property
    def is_bound_by_channels(self) -> bool:
        """Whether the solver is likely to raise the bound; False before the first attempt."""
        return self._problem is not None and is_bound_by_channels(
            self._problem, stage_costs(self._problem)
        )

    def fits(self, method: Method) -> bool:
        """Whether the method can be used on this placement."""
        if method.pattern is None:
            return True
        if self.candidate.pattern is None:
            return follows(self.origin, method.pattern)
        return method.pattern is self.candidate.pattern

    def attempt(self, method: Method, budget: Budget, *, is_afresh: bool = False) -> Attempt:
        """One method; what the user cannot have is a reason, not the end of `auto`.

        Args:
            method: to be tried.
            budget: for it.
            is_afresh: not from the best order known.
        """
        started = time.monotonic()
        try:
            made = self._plan(method, budget, None if is_afresh else self.order, started)
        except (InfeasibleError, InputError) as error:
            return Attempt(method.name, self.candidate.name, None, error)
        return Attempt(method.name, self.candidate.name, made)

    def _plan(self, method: Method, budget: Budget, known: Order | None, started: float) -> Plan:
        if self._problem is None:
            self._problem = self.candidate.placed(self.origin)
        check_memory_suffices(self._problem)
        if self._bounds is None:
            self._bounds = bounds_of(self._problem)
            self.lower_bound_ns = self._bounds.makespan_ns
        found = method.search(self._problem, self._bounds, budget, known)
        if self._problem.max_sub_blocks == 1:  # what a search proves, it proves for whole ops
            self.lower_bound_ns = max(self.lower_bound_ns, found.lower_bound_ns)
        made = _plan_of(
            self._problem, found, method.name, budget.seed, self.lower_bound_ns, started
        )
        if self.best is None or made.timeline.makespan_ns < self.best.timeline.makespan_ns:
            self.best = made
            if made.schedule.parts is None:  # other methods start from whole ops
                self.order = found.order
        elif made.lower_bound_ns > self.best.lower_bound_ns:
            self.best = self.best.with_bound(made.lower_bound_ns)
        return made


def _try_one(places: Sequence[_Place], method: Method, clock: _Clock) -> Iterator[Attempt]:
    """The method that is asked for; it is tried where it does not fit too, to say why."""
    fitting = [place for place in places if place.fits(method)]
    if not fitting:
        fitting = [place for place in places if place.candidate.pattern is None]
    can_slant = method.is_search and any(place.candidate.slanted() for place in fitting)
    yield from _each(fitting, method, clock, _EQUAL_SHARE if can_slant else 1.0)
    if can_slant:
        yield from _each(_slanted(_favourites(fitting)[:1]), method, clock, 1.0)


def _each(
    places: Sequence[_Place],
    method: Method,
    clock: _Clock,
    share: float,
    *,
    iterations: int | None = None,
) -> Iterator[Attempt]:
    """One method on each placement, for the same part of a share of the time that is left."""
    for number, place in enumerate(places):
        part = share / (len(places) - share * number)
        yield place.attempt(method, clock.share(part, iterations=iterations))


def _slanted(places: Sequence[_Place]) -> list[_Place]:
    """The same placements with less and less work on the first ranks; equal cuts of layers once."""
    made = []
    for place in places:
        assert place.best is not None, "only placements with a plan are slanted"
        known = {_cut(place.best.problem)}
        for candidate in place.candidate.slanted():
            problem = candidate.placed(place.origin)
            if _cut(problem) not in known:
                known.add(_cut(problem))
                made.append(_Place(place.origin, candidate, _problem=problem))
    return made


def _cut(problem: Problem) -> tuple[tuple[int, int] | None, ...]:
    return tuple(stage.layers for stage in problem.stages)


def _try_all(places: list[_Place], clock: _Clock) -> Iterator[Attempt]:
    """Every method on every placement for a short time, then the searches where it is promising."""
    if len(places) == 1 and places[0].num_ops > _MOST_SOLVED_OPS:
        yield from _try_large(places[0], clock)
        return
    for place in places:
        yield from _try_fixed(place, clock)
    if places[0].candidate.pattern is None:
        is_small = places[0].num_ops <= _MOST_EASY_OPS
        yield places[0].attempt(METHODS["greedy"], clock.share(0.15 if is_small else 0.2))
    else:
        yield from _look_around(places, clock)
    for place in _favourites(places)[:1]:
        yield from _try_longer(place, clock)


def _try_longer(place: _Place, clock: _Clock) -> Iterator[Attempt]:
    """What improves and proves the best order known."""
    improve = METHODS["improve"]
    if place.is_bound_by_channels:
        if not place.is_done_for(clock.budget):
            yield place.attempt(improve, clock.share(0.15))
        # Moves seldom lead from one rhythm of the borders to another.
        if not place.is_done_for(clock.budget):
            other = replace(clock.share(0.25), seed=clock.budget.seed + 1)
            yield place.attempt(improve, other, is_afresh=True)
    elif not place.is_done_for(clock.budget):
        is_small = place.num_ops <= _MOST_EASY_OPS
        yield place.attempt(improve, clock.share(0.35 if is_small else 0.75))
    if not place.is_done_for(clock.budget) and place.num_ops <= _MOST_SOLVED_OPS:
        yield place.attempt(METHODS["optimal"], clock.share(1.0))


def _try_fixed(
    place: _Place, clock: _Clock, *, wanted: Callable[[Method], bool] = lambda _: True
) -> Iterator[Attempt]:
    """The methods that do not search."""
    for method in METHODS.values():
        if not method.is_search and place.fits(method) and wanted(method):
            yield place.attempt(method, clock.share(1.0))


def _try_large(place: _Place, clock: _Clock) -> Iterator[Attempt]:
    """Formulas take no time to speak of, and greedy is often optimal at once; rules take long."""
    has_time_for_all = place.num_ops <= _MOST_FORMULA_OPS
    if has_time_for_all:
        yield from _try_fixed(place, clock, wanted=_is_formula)
    can_improve = place.num_ops <= _MOST_IMPROVED_OPS
    if not place.is_done_for(clock.budget):
        yield place.attempt(METHODS["greedy"], clock.share(_LARGE_SHARE if can_improve else 1.0))
    if can_improve and not place.is_done_for(clock.budget):
        yield place.attempt(METHODS["improve"], clock.share(1.0))
    if has_time_for_all and not place.is_done_for(clock.budget):
        rules_s = _RULE_S * place.num_ops
        if place.best is None or rules_s < clock.share(1.0).time_limit_s:
            yield from _try_fixed(place, clock, wanted=lambda method: not _is_formula(method))


def _is_formula(method: Method) -> bool:
    """Whether a method writes its order down; those without a placement of their own find it."""
    return method.pattern is not None


def _look_around(places: list[_Place], clock: _Clock) -> Iterator[Attempt]:
    """A short look at every placement, and a longer one at the favourites.

    Those with slants join the places.
    """
    greedy = METHODS["greedy"]
    yield from _look(places, clock, _LOOK_SHARE)
    slanted = _slanted(_favourites(places, _NUM_SLANTED))
    yield from _look(slanted, clock, _LOOK_SHARE)
    places += slanted
    favourites = _favourites(places)
    for number, place in enumerate(favourites):
        if not place.is_done:
            yield place.attempt(greedy, clock.share(1 / (len(favourites) - number + 2)))


def _look(places: Sequence[_Place], clock: _Clock, share: float) -> Iterator[Attempt]:
    """A few passes of greedy on each, in a share of the time that is left."""
    yield from _each(places, METHODS["greedy"], clock, share, iterations=_LOOK_ITERATIONS)


def _favourites(places: Sequence[_Place], most: int = _NUM_FAVOURITES) -> list[_Place]:
    """The placements with the shortest plans."""
    made = [place for place in places if place.best]
    return sorted(made, key=_makespan_ns)[:most]


def _makespan_ns(place: _Place) -> int:
    assert place.best is not None, "only placements with a plan are sorted"
    return place.best.timeline.makespan_ns


def _plan_of(
    problem: Problem, found: Found, method: str, seed: int, bound_ns: int, started: float
) -> Plan:
    """Checks a schedule, runs it on the clock, and says how good it is."""
    schedule = found.order.schedule
    try:
        validate(problem, schedule)
    except ScheduleError as error:  # planners order ops rightly; a fixed method may lack memory
        raise InfeasibleError(f"{method} does not fit: {error}") from None
    timeline = simulate(problem, schedule, send_order=found.order.sends)
    _check_messages(problem, timeline, method)
    status: Status = "time_limit" if found.is_cut_short else "gap"
    wall_s = time.monotonic() - started
    made = Plan(problem, schedule, timeline, method, status, seed, bound_ns, wall_s)
    return made.with_bound(bound_ns)


def _check_messages(problem: Problem, timeline: Timeline, method: str) -> None:
    for rank, peak in enumerate(timeline.peak_message_bytes):
        limit = problem.ranks[rank].message_memory_limit_bytes
        if limit is not None and peak > limit:
            raise InfeasibleError(
                f"{method} does not fit: rank {rank} ({problem.ranks[rank].cluster}) lets {peak} "
                f"bytes of received inputs wait, {peak - limit} more than its "
                f"message_memory_limit_bytes {limit}"
            )
    if any(rank.message_memory_limit_bytes is not None for rank in problem.ranks):
        check_messages_fit(problem, timeline)  # posted receives take memory before they are there


def _best(attempts: Sequence[Attempt], method: str, *, wall_s: float) -> Plan:
    """The shortest plan; without any, the last reason, as greedy asks for the least memory."""
    plans = [attempt.plan for attempt in attempts if attempt.plan]
    if plans:
        best = min(plans, key=lambda made: made.timeline.makespan_ns)
        bounds = [made.lower_bound_ns for made in plans if made.problem is best.problem]
        return replace(best.with_bound(max(bounds)), wall_s=wall_s)
    if not attempts:
        raise ProblemError(
            f"num_stages_per_rank: {method} has no placement with that many stages on a rank"
        )
    reasons = [attempt.error for attempt in attempts if attempt.error]
    raise next(
        (error for error in reversed(reasons) if isinstance(error, InfeasibleError)), reasons[-1]
    )
