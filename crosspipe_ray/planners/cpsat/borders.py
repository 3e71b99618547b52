"""The search where borders are busy all the time: by the ends of a step, and moves in between.

What the ends refuse raises the bound. What they allow is a lead: an order whose borders have the
rhythm of a short one. List scheduling completes it, and moves on the critical path shorten it; they
seldom lead from one rhythm to another by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import row_of
from crosspipe_ray.planners.cpsat.best import Best, Limits
from crosspipe_ray.planners.cpsat.ends import EndsModel, tune
from crosspipe_ray.planners.greedy.passes import Bias, ListScheduler
from crosspipe_ray.planners.improve.climb import improved
from crosspipe_ray.planners.order import Order

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_REACHES = (0.7, 1.0, 1.3)  # of the ends, in round trips of the first microbatch
_FIRST_PATIENCE = 0.25  # of the solver's deterministic time, which is about a second here
_FIRST_MOVES = 100_000  # of a round; more as the patience grows
_MOVE = 1e-5  # time of a move, in the solver's deterministic time
_SHARE = 0.4  # of the time and effort left, at most, for the moves of a round
_PASSES = (0.0, 0.25, 0.5, 1.0)  # patience of those that complete a lead, of which the best counts
_MOST_LONGER = 1.1  # than the best order is a lead that moves make shorter still
_MOST_FRUITLESS = 3  # rounds without a shorter order or a higher bound


class _Answer(NamedTuple):
    """Of the ends; neither refused nor a lead: they fell silent."""

    is_refused: bool = False
    lead: Order | None = None


@dataclass(slots=True)
class _Question:
    """What the ends are asked for.

    Attributes:
        goal: the makespan, as a share of the way from the bound to `Best.refusable_ns`.
        reach: place in ``_REACHES``.
        patience: with the solver.
    """

    goal: float = 1.0
    reach: int = 0
    patience: float = _FIRST_PATIENCE

    def follow(self, answer: _Answer) -> None:
        """What is allowed is asked of more of the step, what is not answered is asked for less."""
        if answer.is_refused:
            self.goal = min(1.0, 2 * self.goal)
        elif answer.lead and self.reach + 1 < len(_REACHES):
            self.reach += 1
        else:
            self.goal /= 2
            self.patience *= 1 if answer.lead else 2


class BorderSearch:
    """Questions to the ends and moves in turn.

    Args:
        best: is made better.
        limits: of time and effort.
        gap: that is wanted.
    """

    def __init__(self, best: Best, limits: Limits, gap: float) -> None:
        self._best = best
        self._limits = limits
        self._gap = gap
        self._question = _Question()
        self._num_rounds = 0
        self._round_trip_ns = int(best.bounds.heads[0, Kind.I, 0])

    def run(self) -> None:
        """Rounds until the gap is reached or they bring no more."""
        best, num_fruitless = self._best, 0
        while num_fruitless < _MOST_FRUITLESS and not self._is_over:
            before = best.makespan_ns, best.bound_ns
            answer = self._ask()
            self._question.follow(answer)
            if not answer.is_refused:
                self._improve(self._start(answer.lead))
            is_fruitless = before == (best.makespan_ns, best.bound_ns)
            num_fruitless = num_fruitless + 1 if is_fruitless else 0

    @property
    def _is_over(self) -> bool:
        return self._best.is_within(self._gap) or self._limits.are_reached

    def _ask(self) -> _Answer:
        """Whether the ends leave room for a makespan: a refusal raises the bound."""
        from ortools.sat.python import cp_model

        best, question = self._best, self._question
        highest_ns = best.refusable_ns(self._gap)
        limit_ns = best.bound_ns + int(question.goal * (highest_ns - best.bound_ns))
        reach_ns = int(_REACHES[question.reach] * self._round_trip_ns)
        model = EndsModel(best.problem, best.costs, best.bounds, limit_ns, reach_ns)
        solver = self._limits.solver(question.patience, workers=1)
        tune(solver)
        status = self._limits.solve(solver, model)
        if status == cp_model.INFEASIBLE:
            best.raise_bound(limit_ns, model.unit_ns)
            return _Answer(is_refused=True)
        is_lead = status == cp_model.OPTIMAL
        return _Answer(lead=completed(best, model, solver) if is_lead else None)

    def _start(self, lead: Order | None) -> Order:
        """The lead, unless what it leaves out has made it much longer than the best order."""
        best = self._best
        most_ns = _MOST_LONGER * best.makespan_ns
        return lead if lead and lead.timeline(best.problem).makespan_ns < most_ns else best.order

    def _improve(self, start: Order) -> None:
        """Moves from an order, others in every round."""
        limits = self._limits
        wanted_moves = _FIRST_MOVES * self._question.patience / _FIRST_PATIENCE
        num_moves = int(min(wanted_moves, _SHARE * limits.effort / _MOVE))
        limits.effort -= _MOVE * num_moves
        order = improved(
            self._best.problem,
            start,
            time_limit_s=_SHARE * limits.left_s,
            iterations=num_moves,
            seed=limits.seed + self._num_rounds,
            enough_ns=self._best.bound_ns * (1 + self._gap),
        )
        self._num_rounds += 1
        self._best.take(order)


def completed(best: Best, model: EndsModel, solver: cp_model.CpSolver) -> Order:
    """An order in which F's and I's are as urgent as they start early in a solution of the ends.

    The solution knows nothing of W's, of most memory, nor of ranks in the middle of the step.
    """
    scheduler = ListScheduler(best.problem, bounds=best.bounds)
    tails = scheduler.tails.copy()
    for (stage, kind), starts in model.starts_ns(solver).items():
        tails[row_of(stage, kind)] = model.limit_ns - starts
    passes = [scheduler.forward(tails, Bias(patience=(each,) * 3)) for each in _PASSES]
    _, state = min(passes, key=lambda made: made[0])
    return scheduler.order(state)
