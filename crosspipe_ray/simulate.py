"""The clock: what a schedule takes on a problem.

Discrete events under the cost model of CrossPipe (section 3).

A rank runs its ops in order, one at a time, each as soon as its input is there. When F (or I, B)
ends, its message occupies its channel for bytes/bandwidth, one at a time, and arrives latency
later. A channel serves messages in the order that the plan gives, or else by ready time, then
stage, kind, microbatch. Data-parallel gathers start at time 0 and gate a stage's first F;
reductions follow its last W or B.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.costs import StageCosts, Transfer, send_op, stage_costs
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, Kind, Op
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule, peak_memory_bytes
from crosspipe_ray.timeline import Message, Span, Timeline

Times = NDArray[np.int64]
_NOT_YET = -1


def simulate(
    problem: Problem, schedule: Schedule, *, send_order: Iterable[Op] | None = None
) -> Timeline:
    """Runs a schedule on the clock.

    Args:
        problem: with stages.
        schedule: ops per rank. A part of the ops (forwards only, say) is fine; `validate` asks for
            all.
        send_order: SEND ops in the order in which their channels serve them; default: by ready
            time.

    Raises:
        ScheduleError: the ops wait for each other in a cycle; names a rank and what it waits for.
    """
    costs = stage_costs(problem)
    gathers = _gathers(costs, schedule)
    clock = _Clock(costs, problem.num_microbatches, schedule, gathers)
    if send_order is not None:
        clock.fix_send_order(send_order)
    clock.run()
    return _timeline(costs, schedule, clock, gathers)


class _Clock:
    """The state of one simulation.

    What an op waits for has a slot: the activation of stage s and microbatch m at ``2 s M + m``,
    the gradient at ``(2 s + 1) M + m``; ``ready`` holds the time at which it is there. What waits
    for no message (W, and the two ends of the pipeline) reads a last row that is there from the
    start.
    """

    def __init__(
        self,
        costs: Sequence[StageCosts],
        num_microbatches: int,
        schedule: Schedule,
        gathers: Sequence[Sequence[Span]],
    ) -> None:
        num_stages = len(costs)
        self.ready = [_NOT_YET] * (2 * num_stages * num_microbatches) + [0] * num_microbatches
        self.starts: list[list[int]] = [[] for _ in schedule.ranks]
        self.ends: list[list[int]] = [[] for _ in schedule.ranks]
        self.messages: list[Message] = []
        self.slots = [_slots(stage, num_stages, num_microbatches) for stage in range(num_stages)]
        self._num_microbatches = num_microbatches
        self._schedule = schedule
        self._rank_of = [cost.rank for cost in costs]
        self._durations = [cost.duration_ns for cost in costs]
        self._outputs = [
            _outputs(cost, stage, num_microbatches) for stage, cost in enumerate(costs)
        ]
        self._gates = {span.op.stage: span.end_ns for spans in gathers for span in spans}
        # The rank that stands still until the slot is filled.
        self._waiting = [_NOT_YET] * len(self.ready)
        self._events: list[tuple[int, Op]] = []  # ends of ops
        self._channel_free: dict[int, int] = {}
        # Per channel, the slots of its messages in order; and ready messages that wait for a turn.
        self._turns: dict[int, deque[int]] | None = None
        self._held: dict[int, tuple[Op, Transfer, int]] = {}

    def fix_send_order(self, send_order: Iterable[Op]) -> None:
        """Makes channels serve messages in this order."""
        self._turns = {}
        timed = {
            Op(stage, transfer.kind, microbatch): (transfer.route.channel, row + microbatch)
            for stage, outputs in enumerate(self._outputs)
            for transfer, row in outputs.values()
            if transfer.route
            for microbatch in range(self._num_microbatches)
        }
        for op in send_order:
            if op not in timed:
                raise ScheduleError(f"send {op}: it occupies no link, or is given twice")
            channel, slot = timed.pop(op)
            self._turns.setdefault(channel, deque()).append(slot)

    def run(self) -> None:
        """Takes the ends of ops in the order of time until nothing moves."""
        for rank in range(len(self.starts)):
            self._advance(rank)
        events = self._events
        while events:
            now, op = heappop(events)
            self._finish(op, now)
            self._advance(self._rank_of[op[0]])
        self._check_done()

    def _advance(self, rank: int) -> None:
        """Starts the rank's next ops up to one that sends something, or notes what it waits for."""
        starts, ends, ops = self.starts[rank], self.ends[rank], self._schedule.ranks[rank]
        free = ends[-1] if ends else 0
        for position in range(len(starts), len(ops)):
            op = ops[position]
            stage, kind, microbatch = op
            slot = self.slots[stage][kind] + microbatch  # type: ignore[operator]  # compute ops have a microbatch
            start = self.ready[slot]
            if start == _NOT_YET:
                self._waiting[slot] = rank
                return
            if free > start:
                start = free
            if self._gates and kind == Kind.F:
                start = max(start, self._gates.get(stage, 0))
            free = start + self._durations[stage][kind]
            starts.append(start)
            ends.append(free)
            if kind in self._outputs[stage]:
                heappush(self._events, (free, op))
                return

    def _finish(self, op: Op, now: int) -> None:
        """Sends what the op leaves behind."""
        stage, kind, microbatch = op
        transfer, row = self._outputs[stage][kind]
        slot = row + microbatch  # type: ignore[operator]  # compute ops have a microbatch
        if transfer.route is None:
            self._deliver(slot, now)
        elif self._turns is None:
            self._send(slot, op, transfer, now)
        else:
            self._held[slot] = op, transfer, now
            self._serve(self._turns.get(transfer.route.channel))

    def _serve(self, turns: deque[int] | None) -> None:
        """Sends the ready messages whose turn it is on a channel."""
        while turns and turns[0] in self._held:
            slot = turns.popleft()
            self._send(slot, *self._held.pop(slot))

    def _send(self, slot: int, op: Op, transfer: Transfer, now: int) -> None:
        route = transfer.route
        assert route is not None
        channel_free = self._channel_free
        start = channel_free.get(route.channel, 0)
        if now > start:
            start = now
        channel_free[route.channel] = end = start + transfer.occupancy_ns
        arrive = end + route.latency_ns
        self.messages.append(
            Message(send_op(op, transfer), transfer.src, transfer.dst, start, end, arrive)
        )
        self._deliver(slot, arrive)

    def _deliver(self, slot: int, arrive: int) -> None:
        self.ready[slot] = arrive
        if self._waiting[slot] != _NOT_YET:
            self._advance(self._waiting[slot])

    def _check_done(self) -> None:
        for rank, ops in enumerate(self._schedule.ranks):
            position = len(self.starts[rank])
            if position < len(ops):
                stage, kind, microbatch = ops[position]
                source = (
                    Op(stage - 1, Kind.F, microbatch)
                    if kind is Kind.F
                    else Op(stage + 1, Kind.I, microbatch)
                )
                raise ScheduleError(
                    f"rank {rank}, op {ops[position]} (position {position}): deadlock, it waits "
                    f"for the message of {source}, which never runs: ranks wait for each other "
                    "in a cycle, or the op or its send is missing",
                    self._schedule.grid(around=(rank, position)),
                )


def _slots(stage: int, num_stages: int, num_microbatches: int) -> tuple[int, int, int, int]:
    """First slot of what F, I, W and B of a stage wait for."""
    always = 2 * num_stages * num_microbatches
    activation = 2 * stage * num_microbatches if stage else always
    gradient = (2 * stage + 1) * num_microbatches if stage < num_stages - 1 else always
    return activation, gradient, always, gradient


def _outputs(
    cost: StageCosts, stage: int, num_microbatches: int
) -> dict[Kind, tuple[Transfer, int]]:
    """Per kind of op that sends: its message, and the first slot that it fills at the neighbour."""
    outputs = {}
    if cost.output:
        outputs[Kind.F] = cost.output, 2 * (stage + 1) * num_microbatches
    if cost.gradient:
        outputs[Kind.I] = outputs[Kind.B] = cost.gradient, (2 * (stage - 1) + 1) * num_microbatches
    return outputs


def _gathers(costs: Sequence[StageCosts], schedule: Schedule) -> list[list[Span]]:
    """Gathers of each rank from time 0, in the order in which its stages need them."""
    gathers = []
    for ops in schedule.ranks:
        spans: list[Span] = []
        for stage in dict.fromkeys(op.stage for op in ops if costs[op.stage].gather_ns):
            start = spans[-1].end_ns if spans else 0
            spans.append(Span(Op(stage, Kind.UNSHARD, None), start, start + costs[stage].gather_ns))
        gathers.append(spans)
    return gathers


def _reductions(
    costs: Sequence[StageCosts], spans: Sequence[Span], gathers: Sequence[Span]
) -> list[Span]:
    """Reductions of one rank: each after its stage's last W or B, one at a time."""
    last_end = {span.op.stage: span.end_ns for span in spans if span.op.kind in (Kind.W, Kind.B)}
    free = gathers[-1].end_ns if gathers else 0
    reductions = []
    for stage, ready in sorted(last_end.items(), key=lambda item: (item[1], item[0])):
        if costs[stage].reduce_ns:
            start = max(ready, free)
            free = start + costs[stage].reduce_ns
            reductions.append(Span(Op(stage, Kind.REDUCE_GRAD, None), start, free))
    return reductions


def _timeline(
    costs: Sequence[StageCosts],
    schedule: Schedule,
    clock: _Clock,
    gathers: Sequence[Sequence[Span]],
) -> Timeline:
    ranks = tuple(
        tuple(map(Span, ops, starts, ends))
        for ops, starts, ends in zip(schedule.ranks, clock.starts, clock.ends, strict=True)
    )
    collectives = tuple(
        (*gathered, *_reductions(costs, spans, gathered))
        for spans, gathered in zip(ranks, gathers, strict=True)
    )
    last = [spans[-1].end_ns for spans in (*ranks, *collectives) if spans]
    return Timeline(
        ranks=ranks,
        sends=tuple(clock.messages),
        collectives=collectives if any(collectives) else (),
        makespan_ns=max(last, default=0),
        peak_memory_bytes=peak_memory_bytes(costs, schedule),
        peak_message_bytes=_peak_message_bytes(costs, clock, ranks),
    )


def _peak_message_bytes(
    costs: Sequence[StageCosts], clock: _Clock, ranks: Sequence[Sequence[Span]]
) -> tuple[int, ...]:
    """Most bytes of inputs from other ranks that have arrived and wait for their op, per rank."""
    sizes = [
        [_input_bytes(costs, stage, kind) for kind in COMPUTE_KINDS] for stage in range(len(costs))
    ]
    slots, ready = clock.slots, clock.ready
    peaks = []
    for spans in ranks:
        waits = [
            (ready[slots[stage][kind] + microbatch], start, sizes[stage][kind])  # type: ignore[operator]
            for (stage, kind, microbatch), start, _ in spans
            if sizes[stage][kind]
        ]
        peaks.append(_peak_waiting(*np.array(waits, dtype=np.int64).T) if waits else 0)
    return tuple(peaks)


def _peak_waiting(arrivals: Times, starts: Times, num_bytes: Times) -> int:
    times, changes = np.concatenate([arrivals, starts]), np.concatenate([num_bytes, -num_bytes])
    in_order = np.lexsort((changes, times))  # at equal times releases come first
    return max(0, int(np.cumsum(changes[in_order]).max()))


def _input_bytes(costs: Sequence[StageCosts], stage: int, kind: Kind) -> int:
    """Bytes that another rank sends for an op."""
    if kind is Kind.W:
        return 0
    source = stage - 1 if kind is Kind.F else stage + 1
    if not 0 <= source < len(costs):
        return 0
    transfer = costs[source].transfer(kind)
    return transfer.num_bytes if transfer and transfer.src != transfer.dst else 0
