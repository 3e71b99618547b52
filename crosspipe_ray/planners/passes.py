"""One pass of list scheduling: whenever a rank is free, it runs the most urgent op that it can.

Urgency is the least time from an op to the end of the step, at first the tail of the bound. A rank
waits instead when a more urgent op is known to arrive soon and would come too late for the goal
otherwise. A `Bias` bends these rules.

F of a stage starts only while the rank has room left for all its later stages too; so the oldest
microbatch can always go on: no pass deadlocks, whatever the placement.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds import Bounds, bounds_of, tail_table_ns
from crosspipe_ray.planners.kernel import NEVER, Choice, Net, State, run
from crosspipe_ray.planners.network import Order, fresh_state, mirrored, net_of, order_of
from crosspipe_ray.problem import Problem

Triple = tuple[float, float, float]
Rows = list[list[int]]  # per row of the kernel, a value for every microbatch


@dataclass(frozen=True, slots=True)
class Bias:
    """How the rules are bent. Offsets are in mean durations of an op.

    Attributes:
        patience: per kind (F, I, W), how long a rank that could start such an op waits for a more
        urgent one, as a share of the op's duration.
        goal: makespan to be met, in lower bounds; a rank waits only for an op that would miss it.
        offset: added urgency per kind.
        slope: added urgency per kind, times the stage's share of the depth of the pipeline.
        cap: microbatches that the last stage may hold between F and I; None: no cap.
        cap_slope: so many more for every stage before it.
    """

    patience: Triple = (0.5, 0.5, 0.5)
    goal: float = 0.0
    offset: Triple = (0.0, 0.0, 0.0)
    slope: Triple = (0.0, 0.0, 0.0)
    cap: float | None = None
    cap_slope: float = 0.0


class ListScheduler:
    """Passes over one problem, forwards and backwards in time.

    Attributes:
        bounds: of the problem.
        tails: from the start of each op, by the bound.
        num_stages: of the problem.
    """

    def __init__(self, problem: Problem, *, bounds: Bounds | None = None) -> None:
        costs = stage_costs(problem)
        self.bounds = bounds or bounds_of(problem, costs)
        table = tail_table_ns(problem, costs, bounds=self.bounds)
        self.tails: Rows = [
            table[kind][stage] for stage in range(len(costs)) for kind in (Kind.F, Kind.I, Kind.W)
        ]
        self.num_stages = len(costs)
        self._problem = problem
        self._net = net_of(problem, costs)
        self._mirrored = mirrored(problem, costs, self._net)
        self._fresh = fresh_state(self._net, problem.num_microbatches)
        self._fresh_mirrored = fresh_state(self._mirrored, problem.num_microbatches)
        self._mean_ns = sum(self._net.duration) / len(self._net.duration)

    def order(self, state: State) -> Order:
        """The order that a forward pass left."""
        return order_of(self._problem, self._net, state)

    def forward(self, tails: Rows, bias: Bias) -> tuple[int, State]:
        """One pass: its makespan, and what it left."""
        urgency: list[int] = []
        for row, values in enumerate(tails):
            offset = self._offset_ns(bias, row)
            urgency += [value + offset for value in values] if offset else values
        choice = Choice(
            urgency,
            _patience_ns(self._net, bias.patience),
            [self._cap(bias, row // 3) for row in range(len(tails))],
            int(bias.goal * self.bounds.makespan_ns),
        )
        state = _copy_of(self._fresh)
        return run(self._net, state, choice, self._problem.num_microbatches), state

    def learned_tails(
        self, state: State, *, noise: float, patience: float, goal: float, rng: random.Random
    ) -> Rows:
        """Times from each start to the end of the step when an order is gone through backwards.

        What ended last goes first, on the mirrored problem.

        Args:
            state: of a forward pass.
            noise: standard deviation of a row's urgency, in mean durations.
            patience: as in Bias.
            goal: as in Bias.
            rng: makes the noise.
        """
        net, count = self._mirrored, self._problem.num_microbatches
        urgency: list[int] = []
        for row, duration in enumerate(net.duration):
            offset = duration + int(rng.gauss(0.0, noise * self._mean_ns))
            urgency += [start + offset for start in _backwards(state, row, count)]
        backwards = _copy_of(self._fresh_mirrored)
        choice = Choice(
            urgency,
            _patience_ns(net, (patience,) * 3),
            [NEVER] * len(net.duration),
            int(goal * self.bounds.makespan_ns),
        )
        run(net, backwards, choice, count)
        return [
            [start + duration for start in _backwards(backwards, row, count)]
            for row, duration in enumerate(net.duration)
        ]

    def _offset_ns(self, bias: Bias, row: int) -> int:
        stage, kind = divmod(row, 3)
        depth = stage / max(1, self.num_stages - 1)
        return int(self._mean_ns * (bias.offset[kind] + bias.slope[kind] * depth))

    def _cap(self, bias: Bias, stage: int) -> int:
        if bias.cap is None:
            return NEVER
        return max(1, round(bias.cap + bias.cap_slope * (self.num_stages - 1 - stage)))


def _patience_ns(net: Net, patience: Triple) -> list[int]:
    return [int(patience[row % 3] * duration) for row, duration in enumerate(net.duration)]


def _backwards(state: State, row: int, count: int) -> list[int]:
    starts = list(state.starts[row * count : (row + 1) * count])
    starts.reverse()
    return starts


def _copy_of(state: State) -> State:
    return State(*(values[:] for values in state))
