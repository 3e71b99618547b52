"""The search where borders are busy all the time: by the ends of a step, and moves in between.

What the ends refuse raises the bound. What they allow is a lead: an order whose borders have the
rhythm of a short one. List scheduling completes it, and moves on the critical path shorten it; they
seldom lead from one rhythm to another by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import Times, row_of
from crosspipe_ray.planners.cpsat.best import Best, Limits
from crosspipe_ray.planners.cpsat.ends import EndsModel, tune
from crosspipe_ray.planners.greedy.passes import Bias, ListScheduler
from crosspipe_ray.planners.improve.climb import improved
from crosspipe_ray.planners.order import Order

_REACHES = (0.7, 1.0, 1.3)  # of the ends, in round trips of the first microbatch
_FIRST_PATIENCE = 0.25  # of the solver's deterministic time, which is about a second here
_CLOSE = 0.001  # of the bound: less is not worth a question of its own
_FIRST_MOVES = 25_000  # of a round, more as the patience grows; soon nothing more comes of them
_MOVES_OF_LEAD = 4  # times as many
_MOVE = 1e-5  # time of a move, in the solver's deterministic time
_SHARE = 0.4  # of the time and effort left, at most, for the moves of a round
_PASSES = (0.0, 0.25, 0.5, 1.0)  # patience of those that complete a lead, of which the best counts
_MOST_LONGER = 1.1  # than the best order is a lead that moves make shorter still
_MOST_FRUITLESS = 3  # rounds without a shorter order or a higher bound


class Answer(NamedTuple):
    """Of the ends; neither refused nor a lead: they fell silent."""

    is_refused: bool = False
    lead: Order | None = None


class Questions:
    """Which makespan the ends are asked for next, of how much of the step, and how patiently.

    The less is asked for, the sooner it is refused. So a makespan that is not refused has to wait,
    and the next one is halfway to the bound; where that is close, the last one that waits is asked
    for again, with more patience.

    Attributes:
        reach: place in ``_REACHES``.
        patience: with the solver.
    """

    def __init__(self) -> None:
        self.reach = 0
        self.patience = _FIRST_PATIENCE
        self._waiting: list[int] = []

    def next_ns(self, bound_ns: int, highest_ns: int) -> int:
        """A makespan above the bound, up to the highest that is of use."""
        self._waiting = [each for each in self._waiting if each > bound_ns]
        if not self._waiting:
            return highest_ns
        lowest_ns = min(self._waiting[-1], highest_ns)
        if lowest_ns - bound_ns > _CLOSE * bound_ns:
            return (bound_ns + lowest_ns) // 2
        self._waiting.pop()
        self.patience *= 2
        return lowest_ns

    def follow(self, asked_ns: int, answer: Answer, *, is_whole: bool) -> None:
        """What is allowed is asked of more of the step, if there is more."""
        if answer.lead and not is_whole and self.reach + 1 < len(_REACHES):
            self.reach += 1
        elif not answer.is_refused:
            self._waiting.append(asked_ns)


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
        self._questions = Questions()
        self._ends: EndsModel | None = None
        self._num_rounds = 0
        self._round_trip_ns = int(best.bounds.heads[0, Kind.I, 0])

    def run(self) -> None:
        """Rounds until the gap is reached or they bring no more.

        Moves from the order that is given come after the first question: it then asks for more, and
        more kinds of leads answer it.
        """
        best, num_fruitless = self._best, 0
        given: Order | None = best.order
        while num_fruitless < _MOST_FRUITLESS and not self._is_over:
            before = best.makespan_ns, best.bound_ns
            answer = self._ask()
            if answer.lead:
                self._improve(self._start(answer.lead), _MOVES_OF_LEAD * _FIRST_MOVES)
            elif not answer.is_refused:
                self._improve(best.order, _FIRST_MOVES)
            if given is not None:
                self._improve(given, _FIRST_MOVES)
                given = None
            is_fruitless = before == (best.makespan_ns, best.bound_ns)
            num_fruitless = num_fruitless + 1 if is_fruitless else 0

    @property
    def _is_over(self) -> bool:
        return self._best.is_within(self._gap) or self._limits.are_reached

    def _ask(self) -> Answer:
        """Whether the ends leave room for a makespan: a refusal raises the bound."""
        from ortools.sat.python import cp_model

        best, questions = self._best, self._questions
        highest_ns = best.refusable_ns(self._gap)
        asked_ns = questions.next_ns(best.bound_ns, highest_ns)
        ends = self._ends_up_to(highest_ns)
        solver = self._limits.solver(questions.patience, workers=1)
        tune(solver)
        status = self._limits.solve(solver, ends.within(asked_ns))
        is_refused, is_lead = status == cp_model.INFEASIBLE, status == cp_model.OPTIMAL
        if is_refused:
            best.raise_bound(asked_ns, ends.unit_ns)
        lead = completed(best, ends.starts_ns(solver), asked_ns) if is_lead else None
        answer = Answer(is_refused, lead)
        questions.follow(asked_ns, answer, is_whole=ends.is_whole)
        return answer

    def _ends_up_to(self, highest_ns: int) -> EndsModel:
        """The model of the reach that is asked for; it is built once for many questions."""
        best, reach_ns = self._best, int(_REACHES[self._questions.reach] * self._round_trip_ns)
        ends = self._ends
        if ends is None or ends.reach_ns < reach_ns or ends.limit_ns < highest_ns:
            ends = EndsModel(best.problem, best.costs, best.bounds, highest_ns, reach_ns)
            self._ends = ends
        return ends

    def _start(self, lead: Order | None) -> Order:
        """The lead, unless what it leaves out has made it much longer than the best order."""
        best = self._best
        most_ns = _MOST_LONGER * best.makespan_ns
        return lead if lead and lead.timeline(best.problem).makespan_ns < most_ns else best.order

    def _improve(self, start: Order, first_moves: int) -> None:
        """Moves from an order, others in every round; more of them as the patience grows."""
        limits = self._limits
        wanted_moves = first_moves * self._questions.patience / _FIRST_PATIENCE
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


def completed(best: Best, starts_ns: Mapping[tuple[int, Kind], Times], limit_ns: int) -> Order:
    """An order in which F's and I's are as urgent as they start early in a solution of the ends.

    The solution knows nothing of W's, of most memory, nor of ranks in the middle of the step.

    Args:
        best: of the problem.
        starts_ns: by stage and kind, per microbatch.
        limit_ns: makespan of the solution.
    """
    scheduler = ListScheduler(best.problem, bounds=best.bounds)
    tails = scheduler.tails.copy()
    for (stage, kind), starts in starts_ns.items():
        tails[row_of(stage, kind)] = limit_ns - starts
    passes = [scheduler.forward(tails, Bias(patience=(each,) * 3)) for each in _PASSES]
    _, state = min(passes, key=lambda made: made[0])
    return scheduler.order(state)
