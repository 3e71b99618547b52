"""The search where borders are busy all the time: by the ends of a step, and moves in between.

What the ends refuse raises the bound. What they allow is a lead: an order whose borders have the
rhythm of a short one. List scheduling completes it, and moves on the critical path shorten it; they
seldom lead from one rhythm to another by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from crosspipe_ray.planners.bounds.relaxation import row_of
from crosspipe_ray.planners.cpsat.best import Best, Limits, refuse
from crosspipe_ray.planners.cpsat.ends import EndsModel, tune
from crosspipe_ray.planners.greedy.passes import Bias, ListScheduler
from crosspipe_ray.planners.improve.climb import improved
from crosspipe_ray.planners.order import Order

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Way = tuple[float, float]  # reach of the ends, as a share of the bound; the solver's patience
_QUICK, _FAIR, _WIDE = (0.2, 0.08), (0.24, 0.25), (0.34, 0.8)
_LEAD = 0.55  # between the bound and the best makespan: where a lead is looked for
_PATIENCES = (0.0, 0.25, 0.5, 1.0)  # of the passes that complete a lead, of which the best counts
_NUM_STARTS = 2  # rounds that begin with the lead, not with the best order
_NUM_STEPS = 100_000  # moves of the first round
_STEP = 1e-5  # time of a move, in the solver's deterministic time
_SHARE = 0.4  # of the time and effort left, at most, for the moves of a round
_MOST_FRUITLESS = 2  # rounds without a shorter order or a higher bound


def search_borders(best: Best, limits: Limits, gap: float) -> None:
    """Rounds of moves and refusals, until the gap is reached or they bring no more."""
    refuse_by_ends(best, limits, gap, [_QUICK])
    lead = _lead(best, limits)
    num_rounds = num_fruitless = 0
    while num_fruitless < _MOST_FRUITLESS and not (best.is_within(gap) or limits.are_reached):
        before = best.makespan_ns, best.bound_ns
        start = lead if lead and num_rounds < _NUM_STARTS else best.order
        _improve(best, limits, gap, start, num_rounds)
        refuse_by_ends(best, limits, gap, persistence=2.0**num_rounds)
        num_rounds += 1
        num_fruitless = num_fruitless + 1 if before == (best.makespan_ns, best.bound_ns) else 0


def refuse_by_ends(
    best: Best,
    limits: Limits,
    gap: float,
    ways: Sequence[Way] = (_FAIR, _WIDE),
    *,
    persistence: float = 1.0,
) -> None:
    """Raises the bound by what the ends refuse, with so many times the patience."""

    def does_refuse(way: Way, limit_ns: int) -> bool:
        _ask(best, limits, way, limit_ns, persistence)
        return best.bound_ns > limit_ns

    refuse(best, limits, [partial(does_refuse, way) for way in ways], gap)


def _lead(best: Best, limits: Limits) -> Order | None:
    """An order by what the wide ends allow, if they soon allow anything."""
    if limits.are_reached:
        return None
    limit_ns = best.bound_ns + int(_LEAD * (best.makespan_ns - best.bound_ns))
    return _ask(best, limits, _WIDE, limit_ns)


def _ask(
    best: Best, limits: Limits, way: Way, limit_ns: int, persistence: float = 1.0
) -> Order | None:
    """Whether the ends leave room for a makespan: a refusal raises the bound, else it is a lead."""
    from ortools.sat.python import cp_model

    reach, patience = way
    reach_ns = int(reach * best.bounds.makespan_ns)
    model = EndsModel(best.problem, best.costs, best.bounds, limit_ns, reach_ns)
    solver = limits.solver(persistence * patience, workers=1)
    tune(solver)
    status = limits.solve(solver, model)
    if status == cp_model.INFEASIBLE:
        best.raise_bound(limit_ns, model.unit_ns)
    return completed(best, model, solver) if status == cp_model.OPTIMAL else None


def completed(best: Best, model: EndsModel, solver: cp_model.CpSolver) -> Order:
    """An order in which F's and I's are as urgent as they start early in a solution of the ends.

    The solution knows nothing of W's, of most memory, nor of ranks in the middle of the step.
    """
    scheduler = ListScheduler(best.problem, bounds=best.bounds)
    tails = scheduler.tails.copy()
    for (stage, kind), starts in model.starts_ns(solver).items():
        tails[row_of(stage, kind)] = model.limit_ns - starts
    passes = [scheduler.forward(tails, Bias(patience=(each,) * 3)) for each in _PATIENCES]
    _, state = min(passes, key=lambda made: made[0])
    return scheduler.order(state)


def _improve(best: Best, limits: Limits, gap: float, start: Order, num_rounds: int) -> None:
    """Moves from an order: others in every round, and twice as many."""
    num_steps = int(min(2**num_rounds * _NUM_STEPS, _SHARE * limits.effort / _STEP))
    limits.effort -= _STEP * num_steps
    order = improved(
        best.problem,
        start,
        time_limit_s=_SHARE * limits.left_s,
        iterations=num_steps,
        seed=limits.seed + num_rounds,
        enough_ns=best.bound_ns * (1 + gap),
    )
    best.take(order)
