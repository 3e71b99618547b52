"""A problem and a schedule as the machines and jobs of the clock.

Ranks come first, then channels. What an op leaves behind is the input of a message's job on its
channel, and that in turn is the input of the neighbour's op. A message that takes no time is no
job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.clock import NOTHING, Rows
from crosspipe_ray.columns import Ints, Ops, PerRank
from crosspipe_ray.costs import StageCosts, Transfer
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import (
    COMPUTE_KINDS,
    KIND_BITS,
    MICROBATCH_BITS,
    MICROBATCH_MASK,
    Kind,
    op_row,
)
from crosspipe_ray.sub_blocks import PartRows

_FORWARD, _BACKWARD = (Kind.F,), (Kind.I, Kind.B)


@dataclass(frozen=True, slots=True)
class Machines:
    """What there is to do for each microbatch, and where.

    Attributes:
        rows: by row (`ops.op_row`).
        input_bytes: by row, of the input that another rank sends.
        num_ranks: machines that are ranks; the others are channels.
        num_machines: both.
        num_microbatches: each row has as many slots for its input.
        num_slots: of all rows; first come those of what waits for no input.
    """

    rows: Rows
    input_bytes: Ints
    num_ranks: int
    num_machines: int
    num_microbatches: int
    num_slots: int

    def slots(self, codes: Ints) -> Ints:
        """Where the inputs of jobs stand."""
        slots: Ints = self.rows.needs[codes >> MICROBATCH_BITS] + (codes & MICROBATCH_MASK)
        return slots

    def ends(self, codes: Ints, starts: Ints) -> Ints:
        """When jobs end."""
        ends: Ints = starts + self.rows.duration[codes >> MICROBATCH_BITS]
        return ends


def machines_of(
    costs: Sequence[StageCosts],
    parts: PartRows,
    num_microbatches: int,
    gates_ns: Mapping[int, int],
    *,
    has_send_order: bool,
) -> Machines:
    """The machines of a problem.

    Args:
        costs: per stage.
        parts: rows that the schedule uses.
        num_microbatches: of the problem.
        gates_ns: per stage that has a gather, when it is there.
        has_send_order: channels keep a given order; else those of several ranks have a queue.
    """
    table = _Table(costs, num_microbatches)
    for stage, cost in enumerate(costs):
        table.add_ops(stage, cost, gates_ns.get(stage, 0))
        for transfer in cost.transfers:
            table.add_transfer(stage, transfer)
    return table.finish(parts, set() if has_send_order else _shared_channels(costs))


def jobs_of(machines: Machines, ops: PerRank[Ops], send_order: Ops | None) -> PerRank[Ops]:
    """The jobs of each machine, in order; of a channel with a queue, in any order.

    Raises:
        ScheduleError: the order of messages names one that is none, or one twice.
    """
    if send_order is not None:
        _check_order(machines, send_order)
        messages = send_order.codes
    else:
        messages = _messages_of(machines, ops.flat.codes)
    channels = machines.rows.machine[messages >> MICROBATCH_BITS] - machines.num_ranks
    num_channels = machines.num_machines - machines.num_ranks
    # Few bits, so that numpy sorts by radix.
    by_channel = np.argsort(channels.astype(np.min_scalar_type(num_channels)), kind="stable")
    lengths = np.bincount(channels, minlength=num_channels)
    codes = np.concatenate([ops.flat.codes, messages[by_channel]])
    first = np.concatenate([ops.first, ops.first[-1] + np.cumsum(lengths)])
    return PerRank(Ops(codes), first)


def _messages_of(machines: Machines, ops: Ints) -> Ints:
    """Messages that ops leave behind, in the order of the ops."""
    rows = machines.rows
    is_message = rows.machine[rows.target] >= machines.num_ranks
    message = np.where(is_message & (rows.target != NOTHING), rows.target, NOTHING)
    made = message[ops >> MICROBATCH_BITS]
    is_sent = made != NOTHING
    messages: Ints = (made[is_sent] << MICROBATCH_BITS) + (ops[is_sent] & MICROBATCH_MASK)
    return messages


def is_in(codes: Ints, num_rows: int, num_microbatches: int) -> NDArray[np.bool_]:
    """Whether ops are in the tables of a problem."""
    is_row = codes >> MICROBATCH_BITS < num_rows
    found: NDArray[np.bool_] = is_row & (codes & MICROBATCH_MASK < num_microbatches)
    return found


def _check_order(machines: Machines, order: Ops) -> None:
    rows = order.codes >> MICROBATCH_BITS
    is_known = is_in(order.codes, len(machines.rows.machine), machines.num_microbatches)
    is_known[is_known] = machines.rows.machine[rows[is_known]] >= machines.num_ranks
    slots = machines.slots(np.where(is_known, order.codes, 0))
    places = np.arange(len(slots))
    first_place = np.zeros(machines.num_slots, dtype=np.int64)
    first_place[slots[::-1]] = places[::-1]
    wrong = np.flatnonzero(~is_known | (first_place[slots] != places))
    if len(wrong):
        raise ScheduleError(f"send {order[int(wrong[0])]}: it occupies no link, or is given twice")


def _shared_channels(costs: Sequence[StageCosts]) -> set[int]:
    """Channels on which several ranks send."""
    senders = defaultdict(set)
    for cost in costs:
        for transfer in cost.transfers:
            if transfer.route:
                senders[transfer.route.channel].add(cost.rank)
    return {channel for channel, ranks in senders.items() if len(ranks) > 1}


class _Table:
    """The rows in the making."""

    def __init__(self, costs: Sequence[StageCosts], num_microbatches: int) -> None:
        num_rows = len(costs) << KIND_BITS
        self._rows = Rows(*(np.zeros(num_rows, dtype=np.int64) for _ in Rows._fields))
        self._rows.target[:] = NOTHING
        self._overhead = np.zeros(num_rows, dtype=np.int64)
        self._input_bytes = np.zeros(num_rows, dtype=np.int64)
        self._num_ranks = 1 + max(cost.rank for cost in costs)
        self._num_microbatches = num_microbatches
        self._num_slots = num_microbatches

    def add_ops(self, stage: int, cost: StageCosts, gate_ns: int) -> None:
        """Adds the ops of a stage."""
        ops = slice(op_row(stage, COMPUTE_KINDS[0]), op_row(stage, COMPUTE_KINDS[-1]) + 1)
        self._rows.machine[ops] = cost.rank
        self._rows.duration[ops] = cost.duration_ns
        self._overhead[ops] = cost.overhead_ns
        self._rows.gate[op_row(stage, Kind.F)] = gate_ns

    def add_transfer(self, stage: int, transfer: Transfer) -> None:
        """Adds what F, or I and B, of a stage leave behind."""
        rows, message = self._rows, op_row(stage, transfer.kind)
        kinds, to = (_FORWARD, 1) if transfer.kind is Kind.SEND_F else (_BACKWARD, -1)
        senders = [op_row(stage, kind) for kind in kinds]
        receivers = [op_row(stage + to, kind) for kind in kinds]
        rows.needs[receivers] = self._new_slots()
        rows.target[senders] = receivers[0]
        self._input_bytes[receivers] = transfer.num_bytes * (transfer.src != transfer.dst)
        if transfer.route:
            rows.target[senders], rows.target[message] = message, receivers[0]
            rows.needs[message] = self._new_slots()
            rows.machine[message] = self._num_ranks + transfer.route.channel
            rows.duration[message] = transfer.occupancy_ns
            rows.lag[message] = transfer.route.latency_ns

    def finish(self, parts: PartRows, queued_channels: set[int]) -> Machines:
        """The machines of the rows, those of parts too.

        A part takes the op's input, as the first is sure to have it; the last one sends.
        """
        whole, num_ranks = self._rows, self._num_ranks
        for channel in queued_channels:
            whole.is_queued[whole.machine == num_ranks + channel] = 1
        rows = Rows(*(column[parts.whole] for column in whole))
        overhead = self._overhead[parts.whole]
        duration = overhead + parts.share(whole.duration - self._overhead)
        return Machines(
            rows._replace(duration=duration, target=np.where(parts.is_last, rows.target, NOTHING)),
            self._input_bytes[parts.whole] * parts.is_first,
            num_ranks,
            int(rows.machine.max()) + 1,
            self._num_microbatches,
            self._num_slots,
        )

    def _new_slots(self) -> int:
        first = self._num_slots
        self._num_slots += self._num_microbatches
        return first
