"""The optimal order by constraint programming (CrossPipe, section 4.1), with OR-Tools CP-SAT.

Target mode: the solver is not asked for the shortest makespan, but for any schedule up to a target
between the bound and the best known makespan. A schedule lowers the latter, a refusal raises the
bound, and silence moves the target; so both ends close in, and proofs come early, when a refusal is
cheap. Where all targets are met with silence, the solver improves the best known order, given as a
hint, for a while, and is then asked again with more patience.

Where channels are the bottleneck, or memory is a cumulative resource, the search begins with cheap
refusals: a model of the ends of the step alone (`ends`), or of all of it without that
resource, often shows in a fraction of a second that a target is out of reach.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from crosspipe_ray.costs import StageCosts, stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.makespan import Bounds, bounds_of
from crosspipe_ray.planners.cpsat.ends import EndsModel, is_bound_by_channels, tune
from crosspipe_ray.planners.cpsat.model import Model, has_cumulative
from crosspipe_ray.planners.cpsat.order import add_hint, solved_order
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.progress import OnProgress, unheard
from crosspipe_ray.problem import Problem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_FIRST_PATIENCE = 0.1  # of the solver's deterministic time, which is about seconds
_TARGETS = (0.5, 0.2, 0.0)  # between the bound and the best known makespan
_IMPROVING = 4  # times the patience: for improving the best known order
_NUM_REFUSALS = 8  # steps in which cheap refusals raise the bound
_RELAXED_PATIENCE = 0.05
_MOST_REFUSED = 0.02  # above the bound, as a share of it; refusals of more are not cheap
_REACHES = ((0.2, 0.08), (0.24, 0.4), (0.34, 1.5))  # of the ends, as shares of the bound; patience


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found.

    Attributes:
        order: the best known; the given one, if none shorter was found.
        lower_bound_ns: proven; at least that of `bounds`.
    """

    order: Order
    makespan_ns: int
    lower_bound_ns: int


def solve(
    problem: Problem,
    *,
    known: Order,
    time_limit_s: float = 60.0,
    effort: float = math.inf,
    workers: int = 1,
    seed: int = 0,
    gap: float = 0.0,
    bounds: Bounds | None = None,
    on_progress: OnProgress = unheard,
) -> Solution:
    """Searches for the shortest schedule.

    Args:
        problem: with stages, any placement.
        known: any order of it; the search is for shorter ones.
        time_limit_s: for all of it.
        effort: for all of it, in the solver's deterministic time (about seconds). Where the clock
            does not cut in, the result depends on it, the workers and the seed alone.
        workers: threads of the solver.
        seed: of the solver.
        gap: stop as soon as the schedule is known to be within this share of the bound.
        bounds: of the problem, if they are at hand.
        on_progress: told when the best makespan or the bound moves.
    """
    costs = stage_costs(problem)
    bounds = bounds or bounds_of(problem, costs)
    limits = _Limits(time.monotonic() + time_limit_s, effort, workers, seed)
    search = _Search(problem, costs, bounds, known, limits, report=on_progress)
    search.refuse(gap)
    patience = _FIRST_PATIENCE
    while not (search.is_within(gap) or search.is_stuck or limits.are_reached):
        for target in _TARGETS:
            if limits.are_reached or search.attempt(target, patience):
                break
        else:
            search.improve(gap, _IMPROVING * patience)
            patience *= _IMPROVING
            search.refuse_again(gap, patience / _FIRST_PATIENCE)
    return search.solution()


@dataclass(slots=True)
class _Limits:
    """What is left of the clock and of the effort."""

    deadline: float
    effort: float
    workers: int
    seed: int

    @property
    def are_reached(self) -> bool:
        return time.monotonic() >= self.deadline or self.effort <= 0

    def solver(self, patience: float, *, workers: int | None = None) -> cp_model.CpSolver:
        """One that gives up in time; no linear relaxations, as they are of no use here."""
        from ortools.sat.python import cp_model  # a heavy import, for this method alone

        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.max_time_in_seconds = max(0.0, self.deadline - time.monotonic())
        parameters.max_deterministic_time = min(patience, self.effort)
        parameters.num_workers = workers = workers or self.workers
        parameters.interleave_search = workers > 1  # else the faster thread would decide
        parameters.random_seed = self.seed
        parameters.linearization_level = 0
        return solver

    def solve(self, solver: cp_model.CpSolver, model: Model | EndsModel) -> cp_model.CpSolverStatus:
        """Solves, and counts the effort."""
        status = solver.solve(model.model)
        self.effort -= solver.response_proto.deterministic_time
        return status


class _Search:
    """The best order and the highest bound so far."""

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        known: Order,
        limits: _Limits,
        *,
        report: OnProgress,
    ) -> None:
        self._problem = problem
        self._costs = costs
        self._bounds = bounds
        self._limits = limits
        self._report = report
        self._bound_ns = bounds.makespan_ns  # of orders without B where the backward is split
        self._is_certain = _splitting_costs_nothing(problem, costs)
        self._is_bound_by_channels = is_bound_by_channels(problem, costs)
        self._order = known
        self.is_stuck = False
        self._makespan_ns = known.timeline(problem).makespan_ns

    def is_within(self, gap: float) -> bool:
        """Whether the best order is good enough."""
        return self._makespan_ns <= self._bound_ns * (1 + gap)

    def refuse(self, gap: float) -> None:
        """Raises the bound step by step by what models that leave things out soon refuse."""
        if self._is_bound_by_channels:
            self._refuse_by([partial(self._do_ends_refuse, *reach) for reach in _REACHES], gap)
        elif has_cumulative(self._problem, self._costs):
            self._refuse_by([self._is_refused_without_memory], gap)

    def refuse_again(self, gap: float, persistence: float) -> None:
        """The same by the widest ends, with so many times the patience."""
        if self._is_bound_by_channels:
            reach, patience = _REACHES[-1]
            self._refuse_by([partial(self._do_ends_refuse, reach, persistence * patience)], gap)

    def _refuse_by(self, ways: list[Callable[[int], bool]], gap: float) -> None:
        """Asks one way after the other; each says whether a makespan is refused.

        What refuses no makespan refuses no longer one either, and is asked no more.
        """
        if self.is_within(gap):
            return
        enough_ns = min(self._makespan_ns - 1, int(self._makespan_ns / (1 + gap)))
        highest_ns = min(enough_ns, int(self._bound_ns * (1 + _MOST_REFUSED)))
        step_ns = (highest_ns - self._bound_ns) // _NUM_REFUSALS
        for steps_left in reversed(range(_NUM_REFUSALS)):
            limit_ns = highest_ns - steps_left * step_ns
            while limit_ns >= self._bound_ns:
                if not ways or self._limits.are_reached:
                    return
                if not ways[0](limit_ns):
                    del ways[0]

    def _do_ends_refuse(self, reach: float, patience: float, limit_ns: int) -> bool:
        reach_ns = int(reach * self._bounds.makespan_ns)
        model = EndsModel(self._problem, self._costs, self._bounds, limit_ns, reach_ns)
        solver = self._limits.solver(patience, workers=1)
        tune(solver)
        return self._is_refused(solver, model, limit_ns)

    def _is_refused_without_memory(self, limit_ns: int) -> bool:
        model = Model(self._problem, self._costs, self._bounds, limit_ns, is_relaxed=True)
        solver = self._limits.solver(_RELAXED_PATIENCE, workers=1)
        return self._is_refused(solver, model, limit_ns)

    def _is_refused(
        self, solver: cp_model.CpSolver, model: Model | EndsModel, limit_ns: int
    ) -> bool:
        from ortools.sat.python import cp_model

        is_refused: bool = self._limits.solve(solver, model) == cp_model.INFEASIBLE
        if is_refused:
            self._raise_bound(limit_ns, model.unit_ns)
        return is_refused

    def _raise_bound(self, refused_ns: int, unit_ns: int) -> None:
        """What comes after a makespan that was refused; times are multiples of the unit."""
        self._bound_ns = (refused_ns // unit_ns + 1) * unit_ns
        self._report(self._makespan_ns, self._bound_ns)

    def attempt(self, target: float, patience: float) -> bool:
        """Asks for a schedule up to a target; whether the bound or the best makespan moved."""
        from ortools.sat.python import cp_model

        limit_ns = self._bound_ns + int(target * (self._makespan_ns - 1 - self._bound_ns))
        model = Model(self._problem, self._costs, self._bounds, limit_ns)
        solver = self._limits.solver(patience)
        status = self._limits.solve(solver, model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            order = solved_order(self._problem, self._costs, model, solver)
            makespan_ns = order.timeline(self._problem).makespan_ns
            if makespan_ns >= self._makespan_ns:  # ops without duration, which the clock must order
                self.is_stuck = True
                return True
            self._order, self._makespan_ns = order, makespan_ns
            self._report(self._makespan_ns, self._bound_ns)
        elif status == cp_model.INFEASIBLE:
            self._raise_bound(limit_ns, model.unit_ns)
        else:
            return False
        return True

    def improve(self, gap: float, patience: float) -> None:
        """Looks for the shortest order, starting from the best known one."""
        from ortools.sat.python import cp_model

        model = Model(self._problem, self._costs, self._bounds, self._makespan_ns)
        model.minimize()
        add_hint(model, self._order.timeline(self._problem))
        solver = self._limits.solver(patience)
        solver.parameters.relative_gap_limit = gap
        if self._limits.solve(solver, model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            order = solved_order(self._problem, self._costs, model, solver)
            makespan_ns = order.timeline(self._problem).makespan_ns
            if makespan_ns < self._makespan_ns:
                self._order, self._makespan_ns = order, makespan_ns
                self._report(self._makespan_ns, self._bound_ns)

    def solution(self) -> Solution:
        """What was found."""
        bound_ns = self._bound_ns if self._is_certain else self._bounds.makespan_ns
        return Solution(self._order, self._makespan_ns, bound_ns)


def _splitting_costs_nothing(problem: Problem, costs: Sequence[StageCosts]) -> bool:
    """Whether I and W are never longer than B: refusing their orders refuses B's too."""
    return all(
        problem.is_fused(stage)
        or cost.duration_ns[Kind.I] + cost.duration_ns[Kind.W] <= cost.duration_ns[Kind.B]
        for stage, cost in enumerate(costs)
    )
