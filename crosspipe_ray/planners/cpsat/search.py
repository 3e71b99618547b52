"""The optimal order by constraint programming (CrossPipe, section 4.1), with OR-Tools CP-SAT.

Target mode: the solver is not asked for the shortest makespan, but for any schedule up to a target
between the bound and the best known makespan. A schedule lowers the latter, a refusal raises the
bound, and silence moves the target; so both ends close in, and proofs come early, when a refusal is
cheap. Where all targets are met with silence, the solver improves the best known order, given as a
hint, for a while, and is then asked again with more patience.

Where channels are the bottleneck it begins with the ends of the step (`borders`), and where memory
is a cumulative resource with cheap refusals by a model of all but that.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.planners.bounds.makespan import Bounds, bounds_of
from crosspipe_ray.planners.bounds.relaxation import saved_by_merging_ns
from crosspipe_ray.planners.cpsat.best import Best, Limits
from crosspipe_ray.planners.cpsat.borders import BorderSearch
from crosspipe_ray.planners.cpsat.ends import is_bound_by_channels
from crosspipe_ray.planners.cpsat.model import Model, has_cumulative
from crosspipe_ray.planners.cpsat.order import add_hint, solved_order
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.progress import OnProgress, unheard
from crosspipe_ray.problem import Problem

_FIRST_PATIENCE = 0.1  # of the solver's deterministic time, which is about seconds
_TARGETS = (0.5, 0.2, 0.0)  # between the bound and the best known makespan
_IMPROVING = 4  # times the patience: for improving the best known order
_NUM_REFUSALS = 4  # steps in which cheap refusals raise the bound
_RELAXED_PATIENCE = 0.05


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
    best = Best(problem, costs, bounds, known, on_progress)
    limits = Limits(time.monotonic() + time_limit_s, effort, workers, seed)
    borders = BorderSearch(best, limits, gap) if is_bound_by_channels(problem, costs) else None
    if borders:
        borders.run()
    elif has_cumulative(problem, costs):
        _refuse_without_memory(best, limits, gap)
    patience = _FIRST_PATIENCE
    while not (best.is_within(gap) or best.is_stuck or limits.are_reached):
        for target in _TARGETS:
            if limits.are_reached or _attempt(best, limits, target, patience):
                break
        else:
            _improve(best, limits, gap, _IMPROVING * patience)
            patience *= _IMPROVING
            if borders:
                borders.run()
    # An order with B's may be shorter than all with I's and W's, but by no more than they all save.
    saved_ns = problem.num_microbatches * sum(saved_by_merging_ns(problem, costs))
    bound_ns = max(bounds.makespan_ns, best.bound_ns - saved_ns)
    return Solution(best.order, best.makespan_ns, bound_ns)


def _refuse_without_memory(best: Best, limits: Limits, gap: float) -> None:
    """Raises the bound in steps to what the gap needs, until one of them is not refused."""
    highest_ns = best.refusable_ns(gap)
    step_ns = (highest_ns - best.bound_ns) // _NUM_REFUSALS
    for steps_left in reversed(range(_NUM_REFUSALS)):
        limit_ns = highest_ns - steps_left * step_ns
        is_over = best.is_within(gap) or limits.are_reached
        if is_over or not _is_refused_without_memory(best, limits, limit_ns):
            return


def _is_refused_without_memory(best: Best, limits: Limits, limit_ns: int) -> bool:
    from ortools.sat.python import cp_model

    model = Model(best.problem, best.costs, best.bounds, limit_ns, is_relaxed=True)
    solver = limits.solver(_RELAXED_PATIENCE, workers=1)
    is_refused: bool = limits.solve(solver, model.model) == cp_model.INFEASIBLE
    if is_refused:
        best.raise_bound(limit_ns, model.unit_ns)
    return is_refused


def _attempt(best: Best, limits: Limits, target: float, patience: float) -> bool:
    """Asks for a schedule up to a target; whether the bound or the best makespan moved."""
    from ortools.sat.python import cp_model

    limit_ns = best.bound_ns + int(target * (best.makespan_ns - 1 - best.bound_ns))
    model = Model(best.problem, best.costs, best.bounds, limit_ns)
    solver = limits.solver(patience)
    status = limits.solve(solver, model.model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        best.is_stuck = not best.take(solved_order(best.problem, best.costs, model, solver))
        return True
    if status == cp_model.INFEASIBLE:
        best.raise_bound(limit_ns, model.unit_ns)
        return True
    return False


def _improve(best: Best, limits: Limits, gap: float, patience: float) -> None:
    """Looks for the shortest order, starting from the best known one."""
    from ortools.sat.python import cp_model

    model = Model(best.problem, best.costs, best.bounds, best.makespan_ns)
    model.minimize()
    add_hint(model, best.order.timeline(best.problem))
    solver = limits.solver(patience)
    solver.parameters.relative_gap_limit = gap
    if limits.solve(solver, model.model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        best.take(solved_order(best.problem, best.costs, model, solver))
