"""One pass of list scheduling: whenever a rank is free, it runs the most urgent op that it can.

Urgency is the least time from an op to the end of the step, at first the tail of the bound. A rank
waits instead when a more urgent op is known to arrive soon, before what could start now were done,
and would come too late for the goal otherwise. A `Bias` bends these rules.

F of a stage starts only while the rank has room left for all its later stages too; so the oldest
microbatch can always go on: no pass deadlocks, whatever the placement.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from crosspipe_ray.compiled import NEVER, Loop, as_arrays, as_lists
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.planners.bounds.makespan import Bounds, bounds_of, tails_from_start
from crosspipe_ray.planners.bounds.relaxation import Times
from crosspipe_ray.planners.greedy import kernel
from crosspipe_ray.planners.greedy.kernel import Choice, Net, State, run
from crosspipe_ray.planners.greedy.network import fresh_state, mirrored, net_of, order_of
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem

Triple = tuple[float, float, float]
_PYTHON_S = 4e-6  # for an op in a pass
_NOTHING = np.zeros(0, dtype=np.int64)
_RUN = Loop(
    run,
    kernel.arrive,
    kernel.call,
    kernel.choose,
    kernel.first_to_wake,
    kernel.has_room,
    kernel.next_arrival,
    kernel.ready_to_send,
    kernel.send,
    kernel.start,
    kernel.wake_at,
)


class BothForms(NamedTuple):
    """A net in both of its forms: lists for Python, arrays for machine code."""

    lists: Net
    arrays: Any  # a Net of arrays

    @classmethod
    def of(cls, net: Net) -> BothForms:
        """Of a net of lists."""
        return cls(net, as_arrays(net))


@dataclass(frozen=True, slots=True)
class Bias:
    """How the rules are bent. Offsets are in mean durations of an op.

    Attributes:
        patience: per kind (F, I, W), how long a rank that could start such an op waits for a more
            urgent one, as a share of the op's duration; from 1 on, whenever it would delay that
            one.
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
        tails: from the start of each op, by the bound; shape (rows of the kernel, microbatches).
        steady_tails: as if all ran at one pace; None where a rank has several stages.
        num_stages: of the problem.
    """

    def __init__(self, problem: Problem, *, bounds: Bounds | None = None) -> None:
        costs = stage_costs(problem)
        self.bounds = bounds or bounds_of(problem, costs)
        self.num_stages = len(costs)
        self.tails = tails_from_start(problem, costs, self.bounds)
        self._problem = problem
        net = net_of(problem, costs)
        is_chain = len(problem.ranks) == len(costs)
        self.steady_tails = _steady_tails(net, problem.num_microbatches) if is_chain else None
        self._net = BothForms.of(net)
        self._mirrored = BothForms.of(mirrored(problem, costs, net))
        self._mean_ns = sum(net.duration) / len(net.duration)

    def order(self, state: State) -> Order:
        """The order that a forward pass left."""
        return order_of(self._problem, self._net.lists, state)

    def forward(self, tails: Times, bias: Bias) -> tuple[int, State]:
        """One pass: its makespan, and what it left."""
        choice = Choice(
            urgency=(tails + self._offsets_ns(bias)[:, None]).ravel(),
            patience=self._patience_ns(bias.patience),
            cap=self._caps(bias),
            goal=int(bias.goal * self.bounds.makespan_ns),
        )
        return self._pass(self._net, choice)

    def learned_tails(
        self, state: State, *, noise: float, patience: float, goal: float, rng: random.Random
    ) -> Times:
        """Times from each start to the end of the step when an order is gone through backwards.

        What ended last goes first, on the mirrored problem.

        Args:
            state: of a forward pass.
            noise: standard deviation of a row's urgency, in mean durations.
            patience: as in Bias.
            goal: as in Bias.
            rng: makes the noise.
        """
        durations = self._net.arrays.duration
        offsets = [int(rng.gauss(0.0, noise * self._mean_ns)) for _ in durations]
        choice = Choice(
            urgency=(self._backwards(state) + (durations + offsets)[:, None]).ravel(),
            patience=self._patience_ns((patience,) * 3),
            cap=np.full(len(durations), NEVER),
            goal=int(goal * self.bounds.makespan_ns),
        )
        _, backwards = self._pass(self._mirrored, choice)
        tails: Times = self._backwards(backwards) + durations[:, None]
        return tails

    def _pass(self, net: BothForms, choice: Choice) -> tuple[int, State]:
        """A run of the kernel, in whichever way is sooner done."""
        count = self._problem.num_microbatches
        state = fresh_state(net.lists, count)
        machine_code = _RUN.machine_code(python_s=_PYTHON_S * len(state.starts))
        if machine_code:
            makespan = int(machine_code(net.arrays, state, choice, count))
        else:
            in_lists = as_lists(state)
            makespan = run(net.lists, in_lists, as_lists(choice), count)
            state = as_arrays(in_lists)
        return makespan, state._replace(ready=_NOTHING)

    def _backwards(self, state: State) -> Times:
        """Starts by row, as microbatches count on the mirrored problem."""
        starts: Times = np.asarray(state.starts)
        return starts.reshape(len(self.tails), -1)[:, ::-1]

    def _offsets_ns(self, bias: Bias) -> Times:
        stage, kind = np.divmod(np.arange(3 * self.num_stages), 3)
        depth = stage / max(1, self.num_stages - 1)
        offset, slope = np.array(bias.offset), np.array(bias.slope)
        offsets: Times = (self._mean_ns * (offset[kind] + slope[kind] * depth)).astype(np.int64)
        return offsets

    def _patience_ns(self, patience: Triple) -> Times:
        durations = self._net.arrays.duration
        patiences: Times = (np.tile(patience, self.num_stages) * durations).astype(np.int64)
        return patiences

    def _caps(self, bias: Bias) -> Times:
        stages = np.repeat(np.arange(self.num_stages), 3)
        if bias.cap is None:
            return np.full(len(stages), NEVER)
        caps = np.rint(bias.cap + bias.cap_slope * (self.num_stages - 1 - stages))
        at_least_one: Times = np.maximum(1, caps).astype(np.int64)
        return at_least_one


def _steady_tails(net: Net, num_microbatches: int) -> Times:
    """Tails of the order in which every rank takes F, I and W in turn, as zb-h1 does.

    A microbatch follows the other after the work of the heaviest rank. F goes down without a
    stop, I waits for a W on every rank on its way up, and rank s puts off s W's to the end. With
    equal stages and memory for as many microbatches as ranks that is the optimum without delays,
    and near it with them.
    """
    forward, backward, weight = np.array(net.duration).reshape(-1, 3).T
    pace = (forward + backward + weight).max()
    down = np.cumsum(forward) - forward
    up = np.cumsum((backward + weight)[::-1])[::-1] - (backward + weight)
    turned = forward.sum() + up
    put_off = turned + backward + pace * np.arange(len(forward))
    first_starts = np.stack([down, turned, put_off], axis=1).reshape(-1, 1)
    starts = first_starts + pace * np.arange(num_microbatches)
    tails: Times = starts.max() - starts
    return tails
