"""From a plan to what every rank does: compute ops with SEND and RECV in between.

A RECV only posts a receive; the compute op that needs it waits for it. Receives are posted ahead of
the matching send, since a message to a receive that is posted late pays the latency twice. Per lane
(directed pair of ranks) sends and receives stand in the same order, the plan's; so transports need
no matching, and no rank ever waits for another to get ready.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import NamedTuple

from crosspipe_ray.costs import StageCosts, Transfer, send_op, stage_costs
from crosspipe_ray.errors import InfeasibleError, ScheduleError
from crosspipe_ray.ops import WHOLE, Kind, Op, Part, receive_of
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Lane, Program, check_progress
from crosspipe_ray.timeline import Timeline


@dataclass(frozen=True, slots=True)
class _Transit:
    """One message between two ranks, with both its ends."""

    lane: Lane
    send: Op
    receive: Op
    producer: Op
    consumer: Op
    num_bytes: int
    post_by_ns: int


def lower(problem: Problem, timeline: Timeline) -> tuple[Program, ...]:
    """Programs of all ranks for a simulated timeline.

    Receives are posted so early that the sender can know of it before the planned send, one op of
    the receiver earlier still, as far as ``message_memory_limit_bytes`` allows.

    Raises:
        InfeasibleError: a rank's ``message_memory_limit_bytes`` is too small for the order of its
            messages.
        ScheduleError: the programs would wait for each other in a cycle, or an F, I or B is split,
            which no engine runs.
    """
    _check_only_weights_are_split(timeline)
    programs = _programs(problem, timeline)
    check_progress(programs)
    return programs


def check_messages_fit(problem: Problem, timeline: Timeline) -> None:
    """Posts all receives of a timeline, whatever its ops are split in.

    Raises:
        InfeasibleError: a rank's ``message_memory_limit_bytes`` is too small for the order of its
            messages.
    """
    _programs(problem, timeline)


def _check_only_weights_are_split(timeline: Timeline) -> None:
    if timeline.parts is None:
        return
    for rank in range(len(timeline.ranks)):
        for span, part in timeline.entries(rank):
            if part != WHOLE and span.op.kind is not Kind.W:
                raise ScheduleError(
                    f"rank {rank}, op {span.op}: it is split, and the engine splits W only; plan "
                    "without max_sub_blocks, or by another method"
                )


def _programs(problem: Problem, timeline: Timeline) -> tuple[Program, ...]:
    transits = _transits(stage_costs(problem), timeline)
    return tuple(_program(problem, timeline, rank, transits) for rank in range(len(timeline.ranks)))


def _transits(costs: Sequence[StageCosts], timeline: Timeline) -> list[_Transit]:
    """All messages between ranks, in the order in which the plan sends them."""
    sent = sorted(_sent(costs, timeline), key=lambda each: (each.start_ns, each.turn, each.send))
    queues = _queues(sent)
    longest = [
        max(max(cost.duration_ns) for cost in costs if cost.rank == rank)
        for rank in range(len(timeline.ranks))
    ]
    return [_transit(each, costs, queues, longest[each.transfer.dst]) for each in sent]


def _transit(
    sent: _Sent, costs: Sequence[StageCosts], queues: Mapping[int, _Queue], lead_ns: int
) -> _Transit:
    receive, transfer = receive_of(sent.send), sent.transfer
    # Of the two backward kinds the receiver runs either; positions are looked up by F or I.
    there, back = (Kind.F, Kind.I) if sent.send.kind is Kind.SEND_F else (Kind.I, Kind.F)
    way_back = costs[receive.stage].transfer(back)
    return _Transit(
        lane=(transfer.src, transfer.dst),
        send=sent.send,
        receive=receive,
        producer=sent.producer,
        consumer=Op(receive.stage, there, sent.send.microbatch),
        num_bytes=transfer.num_bytes,
        post_by_ns=_leave_by(queues, way_back, sent.start_ns) - lead_ns,
    )


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message between two ranks: handed over when it is ready, then on its channel."""

    producer: Op
    send: Op
    transfer: Transfer
    ready_ns: int
    start_ns: int
    end_ns: int
    turn: int


def _sent(costs: Sequence[StageCosts], timeline: Timeline) -> Iterator[_Sent]:
    """All messages between ranks; those that take no time start and end when they are ready."""
    timed = {message.op: (turn, message) for turn, message in enumerate(timeline.sends)}
    for spans in timeline.ranks:
        # Of an op in parts, the last one makes the message.
        last = {op: (position, end_ns) for position, (op, _, end_ns) in enumerate(spans)}
        for op, (position, ready_ns) in last.items():
            transfer = costs[op.stage].transfer(op.kind)
            if transfer and transfer.src != transfer.dst:
                send = send_op(op, transfer)
                turn, message = timed.get(send, (position, None))
                start_ns, end_ns = message[3:5] if message else (ready_ns, ready_ns)
                yield _Sent(op, send, transfer, ready_ns, start_ns, end_ns, turn)


class _Queue(NamedTuple):
    """What waits for a channel: when each message has left it, and from when on it was there.

    Attributes:
        ends: of the messages, in the order in which they leave.
        ready: per message, when the first of it and the later ones was handed over.
    """

    ends: list[int]
    ready: list[int]


def _queues(sent: Iterable[_Sent]) -> dict[int, _Queue]:
    """Per channel."""
    messages: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for each in sent:
        if each.transfer.route:
            messages[each.transfer.route.channel].append((each.end_ns, each.ready_ns))
    queues = {}
    for channel, times in messages.items():
        ends, ready = zip(*sorted(times), strict=True)
        earliest = list(accumulate(reversed(ready), min))
        queues[channel] = _Queue(list(ends), earliest[::-1])
    return queues


def _leave_by(queues: Mapping[int, _Queue], way: Transfer | None, there_by_ns: int) -> int:
    """When the news of a posted receive must leave, to be there in time.

    It waits on the channel behind every message that was handed over before it.
    """
    if way is None or way.route is None:
        return there_by_ns
    left_by_ns = there_by_ns - way.route.latency_ns
    queue = queues.get(way.route.channel, _Queue([], []))
    first_behind = bisect_right(queue.ends, left_by_ns)
    return min([left_by_ns, *queue.ready[first_behind : first_behind + 1]])


def _program(
    problem: Problem, timeline: Timeline, rank: int, transits: Sequence[_Transit]
) -> Program:
    spans = timeline.ranks[rank]
    positions = [(_as_split(span.op), position) for position, span in enumerate(spans)]
    # Of an op in parts, the first takes its input and the last makes its message.
    first, last = dict(reversed(positions)), dict(positions)
    sends = [
        transit
        for transit in transits
        if transit.lane[0] == rank and _as_split(transit.producer) in last
    ]
    receives = [
        transit for transit in transits if transit.lane[1] == rank and transit.consumer in first
    ]
    before, peak = _receive_positions(problem, timeline, rank, receives, first)
    after = _send_positions(sends, last)
    entries: list[tuple[Op, Part]] = []
    for position, (span, part) in enumerate(timeline.entries(rank)):
        entries += [(op, WHOLE) for op in before[position]]
        entries.append((span.op, part))
        entries += [(op, WHOLE) for op in after[position]]
    parts = tuple(part for _, part in entries) if timeline.parts else ()
    peers = {transit.send: transit.lane[1] for transit in sends} | {
        t.receive: t.lane[0] for t in receives
    }
    return Program(rank, tuple(op for op, _ in entries), peers, peak, parts)


def _send_positions(sends: Sequence[_Transit], position_of: dict[Op, int]) -> dict[int, list[Op]]:
    """Each SEND follows the op that makes its message, and all earlier SENDs of its lane."""
    after: dict[int, list[Op]] = defaultdict(list)
    last: dict[Lane, int] = {}
    for transit in sends:
        position = max(position_of[_as_split(transit.producer)], last.get(transit.lane, 0))
        last[transit.lane] = position
        after[position].append(transit.send)
    return after


def _receive_positions(
    problem: Problem,
    timeline: Timeline,
    rank: int,
    receives: Sequence[_Transit],
    position_of: dict[Op, int],
) -> tuple[dict[int, list[Op]], int]:
    """Where receives are posted, and the most bytes posted at once.

    They are posted in the order in which they are used, each in time for the planned send, later
    only where the memory for messages is not free before.
    """
    starts = [span.start_ns for span in timeline.ranks[rank]]
    needed = _needed_by(receives, position_of)
    order = sorted(range(len(receives)), key=lambda index: (needed[index], index))
    latest = len(starts)
    in_time: dict[int, int] = {}
    for index in reversed(order):
        latest = min(
            latest, max(0, bisect_right(starts, receives[index].post_by_ns) - 1), needed[index]
        )
        in_time[index] = latest
    budget = _MessageBudget(problem, rank)
    before: dict[int, list[Op]] = defaultdict(list)
    for index in order:
        position = budget.post(
            receives[index], in_time[index], needed[index], position_of[receives[index].consumer]
        )
        before[position].append(receives[index].receive)
    return before, budget.peak_bytes


def _needed_by(receives: Sequence[_Transit], position_of: dict[Op, int]) -> list[int]:
    """Position before which each receive must be posted.

    That is its own use, or that of a later message on its lane.
    """
    needed = [position_of[transit.consumer] for transit in receives]
    first_use: dict[Lane, int] = {}
    for index in range(len(receives) - 1, -1, -1):
        lane = receives[index].lane
        needed[index] = first_use[lane] = min(needed[index], first_use.get(lane, needed[index]))
    return needed


class _MessageBudget:
    """Posted receives of one rank, in the order of posting, against its memory for messages."""

    def __init__(self, problem: Problem, rank: int) -> None:
        self.peak_bytes = 0
        self._limit = problem.ranks[rank].message_memory_limit_bytes
        self._name = f"rank {rank} ({problem.ranks[rank].cluster})"
        self._posted: list[tuple[int, int]] = []  # heap of (position of use, bytes)
        self._posted_bytes = 0
        self._position = 0

    def post(self, transit: _Transit, earliest: int, latest: int, used_at: int) -> int:
        """The first position, from ``earliest``, at which there is memory for the message."""
        self._release_until(max(self._position, earliest))
        while self._missing_bytes(transit) > 0 and self._posted and self._posted[0][0] < latest:
            self._release_until(self._posted[0][0] + 1)
        missing_bytes = self._missing_bytes(transit)
        if missing_bytes > 0:
            raise InfeasibleError(
                f"{self._name}: message_memory_limit_bytes {self._limit} is {missing_bytes} bytes "
                f"too few to post {transit.receive} before it is needed"
            )
        heappush(self._posted, (used_at, transit.num_bytes))
        self._posted_bytes += transit.num_bytes
        self.peak_bytes = max(self.peak_bytes, self._posted_bytes)
        return self._position

    def _missing_bytes(self, transit: _Transit) -> int:
        wanted_bytes = self._posted_bytes + transit.num_bytes
        return 0 if self._limit is None else wanted_bytes - self._limit

    def _release_until(self, position: int) -> None:
        """Moves on; what is used before the position is free there."""
        self._position = position
        while self._posted and self._posted[0][0] < position:
            self._posted_bytes -= heappop(self._posted)[1]


def _as_split(op: Op) -> Op:
    """The op under which positions are looked up: B stands where I would."""
    return Op(op.stage, Kind.I, op.microbatch) if op.kind is Kind.B else op
