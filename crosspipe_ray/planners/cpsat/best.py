"""What the solver has found so far, and what it may still spend."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosspipe_ray.costs import StageCosts
from crosspipe_ray.planners.bounds.makespan import Bounds
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.progress import OnProgress
from crosspipe_ray.problem import Problem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_MOST_REFUSED = 0.02  # above the bound, as a share of it; refusals of more are not cheap


@dataclass(slots=True)
class Limits:
    """What is left of the clock and of the effort."""

    deadline: float
    effort: float
    workers: int
    seed: int

    @property
    def left_s(self) -> float:
        """Of the clock."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def are_reached(self) -> bool:
        """Whether nothing more should be started."""
        return not self.left_s or self.effort <= 0

    def solver(self, patience: float, *, workers: int | None = None) -> cp_model.CpSolver:
        """One that gives up in time.

        It branches on which of two ops goes first, as branching on starts takes many times the
        effort; linear relaxations are of no use here.
        """
        from ortools.sat.python import cp_model  # a heavy import, for this method alone

        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.max_time_in_seconds = self.left_s
        parameters.max_deterministic_time = min(patience, self.effort)
        parameters.num_workers = workers = workers or self.workers
        parameters.interleave_search = workers > 1  # else the faster thread would decide
        parameters.random_seed = self.seed
        parameters.linearization_level = 0
        parameters.use_dynamic_precedence_in_disjunctive = True
        return solver

    def solve(self, solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
        """Solves, and counts the effort."""
        status = solver.solve(model)
        self.effort -= solver.response_proto.deterministic_time
        return status


class Best:
    """The best order and the highest bound so far.

    Attributes:
        problem: with stages.
        costs: of the problem.
        bounds: of the problem.
        order: the shortest known.
        makespan_ns: of the order.
        bound_ns: no order is shorter that runs no B where the backward is split.
        is_stuck: the clock orders ops without duration otherwise than the solver.
    """

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        order: Order,
        report: OnProgress,
    ) -> None:
        self.problem = problem
        self.costs = costs
        self.bounds = bounds
        self.order = order
        self.makespan_ns = order.timeline(problem).makespan_ns
        self.bound_ns = bounds.makespan_ns
        self.is_stuck = False
        self._report = report

    def is_within(self, gap: float) -> bool:
        """Whether the best order is good enough."""
        return self.makespan_ns <= self.bound_ns * (1 + gap)

    def refusable_ns(self, gap: float) -> int:
        """What has to be refused for that, or as much of it as a model may soon refuse."""
        needed_ns = min(self.makespan_ns - 1, int(self.makespan_ns / (1 + gap)))
        return min(needed_ns, int(self.bound_ns * (1 + _MOST_REFUSED)))

    def take(self, order: Order) -> bool:
        """Takes an order if it is shorter; whether it is."""
        makespan_ns = order.timeline(self.problem).makespan_ns
        if makespan_ns >= self.makespan_ns:
            return False
        self.order, self.makespan_ns = order, makespan_ns
        self._report(self.makespan_ns, self.bound_ns)
        return True

    def raise_bound(self, refused_ns: int, unit_ns: int) -> None:
        """To what comes after a makespan that was refused; times are multiples of the unit."""
        self.bound_ns = (refused_ns // unit_ns + 1) * unit_ns
        self._report(self.makespan_ns, self.bound_ns)
