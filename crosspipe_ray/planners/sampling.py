"""What a plan takes when links have other latencies: many sampled steps in one pass.

The orders on ranks and channels are the plan's, as on the ranks; so a step is a longest path, and
one pass over the ops does all samples at once, as arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.costs import StageCosts, Transfer, send_op, stage_costs
from crosspipe_ray.ops import Kind, Op, receive_for, receive_of
from crosspipe_ray.plan import Plan
from crosspipe_ray.timeline import Timeline

Times = NDArray[np.int64]
Latencies = Mapping[tuple[int | str, int | str], Times]


def makespans_ns(plan: Plan, latencies: Latencies) -> Times:
    """The plan's makespan in each sampled step.

    Args:
        plan: its orders hold in every step.
        latencies: arrays of one length, in nanoseconds, by ``src`` and ``dst`` of each link of the
            problem.

    Returns:
        Nanoseconds, as many as there are samples.
    """
    num_samples = len(next(iter(latencies.values())))
    clock = _Clock(plan, latencies, np.zeros(num_samples, dtype=np.int64))
    clock.run()
    return clock.makespans()


class _Clock:
    """Ranks and channels with what they do in order; times are arrays over the samples.

    A timed message is ready at the time of its SEND op; an input is there at that of its RECV op.
    """

    def __init__(self, plan: Plan, latencies: Latencies, zero: Times) -> None:
        self._latencies = latencies
        self._zero = zero
        self._costs = stage_costs(plan.problem)
        self._stages_of = plan.problem.stages_of_rank
        self._queues = _queues(plan.timeline, self._costs)
        self._position = [0] * len(self._queues)
        self._free = [zero] * len(self._queues)
        self._timed = {message.op for message in plan.timeline.sends}
        ranks = range(len(plan.timeline.ranks))
        self._entries = [list(plan.timeline.entries(rank)) for rank in ranks]
        self._gates = {
            span.op.stage: span.end_ns
            for spans in plan.timeline.collectives
            for span in spans
            if span.op.kind is Kind.UNSHARD
        }
        self._times: dict[Op, Times] = {}  # of SEND and RECV ops that nobody has taken yet
        self._last: dict[int, Times] = {}  # per stage, the end of its last W or B
        self._waiting: dict[Op, int] = {}  # for an op of `_times`: the queue

    def run(self) -> None:
        """Advances queues until nothing is left; the plan was simulated, so nothing gets stuck."""
        ready = list(range(len(self._queues)))
        while ready:
            queue = ready.pop()
            ready += self._advance(queue)

    def makespans(self) -> Times:
        """The latest of all ends and reductions."""
        latest: Times = np.maximum.reduce([*self._free, *self._reductions()])
        return latest

    def _advance(self, queue: int) -> Iterator[int]:
        """Does what can be done in a queue; yields the queues that this sets free."""
        ops = self._queues[queue]
        while self._position[queue] < len(ops):
            op = ops[self._position[queue]]
            needed = op if op in self._timed else self._input_of(queue, op)
            there = self._times.pop(needed, None) if needed else self._zero
            if there is None:
                assert needed is not None, "what needs nothing can start"
                self._waiting[needed] = queue
                return
            self._position[queue] += 1
            done = (self._carry if op in self._timed else self._compute)(queue, op, there)
            if done in self._waiting:
                yield self._waiting.pop(done)

    def _compute(self, queue: int, op: Op, there: Times) -> Op | None:
        """Runs an op; returns its message, or the other op's input if that takes no time."""
        stage, kind, _ = op
        span, part = self._entries[queue][self._position[queue] - 1]
        start = np.maximum(self._free[queue], there)
        if kind is Kind.F and stage in self._gates:
            start = np.maximum(start, self._gates[stage])
        self._free[queue] = end = start + (span.end_ns - span.start_ns)
        if kind in (Kind.W, Kind.B):
            self._last[stage] = end
        transfer = self._costs[stage].transfer(kind)
        if transfer is None or part.end < part.num_parts:
            return None
        message = send_op(op, transfer)
        done = message if message in self._timed else receive_of(message)
        self._times[done] = end
        return done

    def _carry(self, queue: int, op: Op, ready: Times) -> Op:
        """Carries a message over its channel; returns the input that it is."""
        transfer = _transfer(self._costs, op)
        assert transfer.route is not None, "timed messages have a route"
        self._free[queue] = end = np.maximum(self._free[queue], ready) + transfer.occupancy_ns
        link = transfer.route.link
        received = receive_of(op)
        self._times[received] = end + self._latencies[link.src, link.dst]
        return received

    def _input_of(self, queue: int, op: Op) -> Op | None:
        """What a rank's next op waits for from another stage; of parts the first does."""
        if self._entries[queue][self._position[queue]][1].first > 0:
            return None
        is_first = op.stage == (0 if op.kind is Kind.F else len(self._costs) - 1)
        return None if is_first else receive_for(op)

    def _reductions(self) -> Iterator[Times]:
        """Ends of the last reduction of each rank; they go by the end of their stage's last op."""
        for held in self._stages_of:
            stages = [stage for stage in held if self._costs[stage].reduce_ns]
            if not stages:
                continue
            gathered = max(self._gates.get(stage, 0) for stage in held)
            ends = np.stack([self._last[stage] for stage in stages])
            order = np.argsort(ends, axis=0, kind="stable")
            durations = np.array([self._costs[stage].reduce_ns for stage in stages])[order]
            free = self._zero + gathered
            for ready, duration in zip(np.take_along_axis(ends, order, 0), durations, strict=True):
                free = np.maximum(free, ready) + duration
            yield free


def _queues(timeline: Timeline, costs: Sequence[StageCosts]) -> list[list[Op]]:
    """The ops of each rank, then the messages of each channel."""
    channels: dict[int, list[Op]] = defaultdict(list)
    for message in timeline.sends:
        route = _transfer(costs, message.op).route
        assert route is not None, "timed messages have a route"
        channels[route.channel].append(message.op)
    return [[span.op for span in spans] for spans in timeline.ranks] + list(channels.values())


def _transfer(costs: Sequence[StageCosts], send: Op) -> Transfer:
    transfer = costs[send.stage].transfer(send.kind)
    assert transfer is not None, "it is sent"
    return transfer
