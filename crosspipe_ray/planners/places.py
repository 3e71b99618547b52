"""What `portfolio` knows of each placement while it tries methods on them, and the best plan."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from crosspipe_ray.costs import (
    check_inputs_fit,
    check_memory_suffices,
    memory_shortage,
    resident_bytes,
    stage_costs,
)
from crosspipe_ray.errors import InfeasibleError, InputError, ScheduleError
from crosspipe_ray.lowering import check_messages_fit
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.bounds.makespan import Bounds, bounds_of
from crosspipe_ray.planners.candidates import Candidate
from crosspipe_ray.planners.cpsat.ends import is_bound_by_channels
from crosspipe_ray.planners.fixed import one_by_one
from crosspipe_ray.planners.merging import merged
from crosspipe_ray.planners.methods import Budget, Found, Method
from crosspipe_ray.planners.numbering import by_stages, renumbered, reordered
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.placement import follows
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule, peak_memory_bytes
from crosspipe_ray.timeline import Timeline

_MERGING_SHARE = 0.05  # of the time of a search, for B's in its order


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


class Allowance:
    """The budget and what is left of its time."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Time spent so far."""
        return time.monotonic() - self._started

    @property
    def is_spent(self) -> bool:
        """Whether no time is left."""
        return self.elapsed_s >= self.budget.time_limit_s

    @property
    def left_s(self) -> float:
        """Time that is left."""
        return max(0.0, self.budget.time_limit_s - self.elapsed_s)

    def share(self, part: float, *, iterations: float = math.inf) -> Budget:
        """A part of what is left, with at most so many iterations."""
        most = min(iterations, self.budget.iterations)
        return replace(self.budget, time_limit_s=part * self.left_s, iterations=most)


@dataclass
class Place:
    """A placement, and the best of what was found on it."""

    origin: Problem
    candidate: Candidate
    best: Plan | None = None
    order: Order | None = None
    lower_bound_ns: int = 0

    @cached_property
    def problem(self) -> Problem:
        """The problem with stages.

        Raises:
            ProblemError: more stages than layers.
        """
        return self.candidate.placed(self.origin)

    @cached_property
    def bounds(self) -> Bounds:
        """Of the problem; what searches prove is not in them."""
        return bounds_of(self.problem)

    @cached_property
    def is_bound_by_channels(self) -> bool:
        """Whether the solver does best by its borders."""
        return is_bound_by_channels(self.problem, stage_costs(self.problem))

    def is_done_for(self, budget: Budget) -> bool:
        """Whether what was found is good enough."""
        return self.best is not None and self.best.gap <= budget.gap

    def may_beat(self, other: Place, budget: Budget) -> bool:
        """Whether its bound leaves room for a plan that is shorter by more than the wanted gap."""
        return self.lower_bound_ns * (1 + budget.gap) < _makespan_ns(other)

    @property
    def num_ops(self) -> int:
        """Compute ops at most."""
        num_stages = len(self.origin.stages) or (
            self.candidate.num_stages_per_rank * len(self.origin.ranks)
        )
        return 3 * num_stages * self.origin.num_microbatches

    def fits(self, method: Method) -> bool:
        """Whether the method can be used on this placement."""
        if method.pattern is None:
            return True
        if self.candidate.pattern is None:
            return follows(self.origin, method.pattern)
        return method.pattern is self.candidate.pattern

    def attempt(self, method: Method, budget: Budget) -> Attempt:
        """One method; what the user cannot have is a reason, not the end of `auto`."""
        started = time.monotonic()
        try:
            made = self._plan(method, budget, started)
        except (InfeasibleError, InputError) as error:
            return Attempt(method.name, self.candidate.name, None, error)
        return Attempt(method.name, self.candidate.name, made)

    def _plan(self, method: Method, budget: Budget, started: float) -> Plan:
        problem = self.problem
        check_memory_suffices(problem)
        if limits_messages(problem):
            check_inputs_fit(problem)
        shown = found = self._search(method, budget)
        if method.is_search and limits_messages(problem):
            shown = found = _with_room_for_messages(problem, found, method.name)
        elif method.is_search:  # a B lets other messages wait than its I and W
            shown = _with_merged_pairs(problem, found, budget)
        proven_ns = found.lower_bound_ns if problem.max_sub_blocks == 1 else 0  # of whole ops alone
        self.lower_bound_ns = max(self.lower_bound_ns, self.bounds.makespan_ns, proven_ns)
        made = _plan_of(problem, shown, method.name, budget.seed, self.lower_bound_ns, started)
        self._keep(made, found.order)  # searches go on from I's and W's
        return made

    def _search(self, method: Method, budget: Budget) -> Found:
        """What a method finds; one that is no formula has the ranks in the order of stages."""
        ranks = by_stages(self.problem)
        if method.pattern is not None or ranks == sorted(ranks):
            return method.search(self.problem, self.bounds, budget, self.order)
        known = self.order and reordered(self.order, ranks)
        found = method.search(renumbered(self.problem, ranks), self.bounds, budget, known)
        number = [ranks.index(rank) for rank in range(len(ranks))]
        return replace(found, order=reordered(found.order, number))

    def _keep(self, made: Plan, order: Order) -> None:
        """The shortest plan, with the highest bound of all."""
        if self.best is None or made.timeline.makespan_ns < self.best.timeline.makespan_ns:
            self.best = made
            if made.schedule.parts is None:  # other methods start from whole ops
                self.order = order
        elif made.lower_bound_ns > self.best.lower_bound_ns:
            self.best = self.best.with_bound(made.lower_bound_ns)


def slanted(places: Sequence[Place]) -> list[Place]:
    """The same placements with less and less work on the first ranks; equal cuts of layers once."""
    made = []
    for place in places:
        known = {_cut(place.problem)}
        for candidate in place.candidate.slanted():
            slanted_place = Place(place.origin, candidate)
            if _cut(slanted_place.problem) not in known:
                known.add(_cut(slanted_place.problem))
                made.append(slanted_place)
    return made


def _cut(problem: Problem) -> tuple[tuple[int, int] | None, ...]:
    return tuple(stage.layers for stage in problem.stages)


def favourites(places: Sequence[Place], most: int) -> list[Place]:
    """The placements with the shortest plans, the best first."""
    made = [place for place in places if place.best]
    return sorted(made, key=_makespan_ns)[:most]


def _makespan_ns(place: Place) -> int:
    assert place.best is not None, "only placements with a plan are sorted"
    return place.best.timeline.makespan_ns


def _plan_of(
    problem: Problem, found: Found, method: str, seed: int, bound_ns: int, started: float
) -> Plan:
    """Checks a schedule, runs it on the clock, and says how good it is."""
    schedule = found.order.schedule
    try:
        validate(problem, schedule)
    except ScheduleError:  # planners order ops rightly, but a fixed method knows no limit
        _check_memory(problem, schedule, method)
        raise
    timeline = found.order.timeline(problem)
    _check_messages(problem, timeline, method)
    wall_s = time.monotonic() - started
    made = Plan(problem, schedule, timeline, method, "gap", seed, bound_ns, wall_s)
    return made.with_bound(bound_ns)


def _check_memory(problem: Problem, schedule: Schedule, method: str) -> None:
    """Refuses an order that needs more memory than there is, and says how much would do."""
    peaks = peak_memory_bytes(stage_costs(problem), schedule)
    needed = [peak + resident_bytes(problem, rank) for rank, peak in enumerate(peaks)]
    reason = memory_shortage(problem, needed, "its order")
    if reason:
        raise InfeasibleError(f"{method} does not fit: {reason}")


def limits_messages(problem: Problem) -> bool:
    """Whether a rank has a limit for received inputs."""
    return any(rank.message_memory_limit_bytes is not None for rank in problem.ranks)


def _with_merged_pairs(problem: Problem, found: Found, budget: Budget) -> Found:
    time_limit_s = _MERGING_SHARE * budget.time_limit_s
    order = merged(problem, stage_costs(problem), found.order, time_limit_s=time_limit_s)
    return replace(found, order=order)


def _with_room_for_messages(problem: Problem, found: Found, method: str) -> Found:
    """What a search found, or, as it does not count messages, the order in which only one waits."""
    try:
        _check_messages(problem, found.order.timeline(problem), method)
    except InfeasibleError:
        return replace(found, order=Order(one_by_one(problem)))
    return found


def _check_messages(problem: Problem, timeline: Timeline, method: str) -> None:
    for rank, peak in enumerate(timeline.peak_message_bytes):
        limit = problem.ranks[rank].message_memory_limit_bytes
        if limit is not None and peak > limit:
            raise InfeasibleError(
                f"{method} does not fit: rank {rank} ({problem.ranks[rank].cluster}) lets {peak} "
                f"bytes of received inputs wait, {peak - limit} more than its "
                f"message_memory_limit_bytes {limit}"
            )
    if limits_messages(problem):
        check_messages_fit(problem, timeline)  # posted receives take memory before they are there
