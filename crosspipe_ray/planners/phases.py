"""The paper's greedy (CrossPipe, section 4.2, Algorithm 1), for comparison: it chooses by phase.

The rank that can start an op the earliest goes next. Of the ops that are ready then it takes F
while it warms up, which is until the first I is ready; F and I in turn while it is steady; I before
W once its F's are done; and W where it is memory that forbids F, or where neither F nor I can
start. Of several stages, the one that is further on its way goes first. A message takes the first
window that its link has free.

With ``max_sub_blocks`` k every op is cut in k parts, and it is a part that is chosen each time (the
paper's CrossUDSub). Parts of an op that come to stand side by side are one entry of the schedule.
"""

from __future__ import annotations

from bisect import insort
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from crosspipe_ray.columns import Parts
from crosspipe_ray.compiled import NEVER
from crosspipe_ray.costs import check_memory_suffices, stage_costs
from crosspipe_ray.ops import Part
from crosspipe_ray.planners.greedy.kernel import Net
from crosspipe_ray.planners.greedy.network import net_of, op_codes
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.sub_blocks import share_of

_F, _I, _W = range(3)


def crosspipe_greedy(problem: Problem) -> Order:
    """One pass; it needs no seed.

    Raises:
        InfeasibleError: a rank has less memory than one microbatch needs.
    """
    check_memory_suffices(problem)
    costs = stage_costs(problem)
    overheads = [cost.overhead_ns for cost in costs for _ in (_F, _I, _W)]
    made = _Pass(net_of(problem, costs), overheads, problem)
    made.run()
    entries = [entry for entries in made.entries for entry in entries]
    ops = np.array([entry.op for entry in entries], dtype=np.int64)
    parts = Parts.of(entry.part for entry in entries)
    lengths = [len(entries) for entries in made.entries]
    return Order(Schedule.of_codes(op_codes(problem, ops), lengths, parts=parts))


class _Entry(NamedTuple):
    """Parts of an op that run one after the other; ``op`` is row x M + microbatch."""

    op: int
    part: Part


class _Pass:
    """The state of one pass: what ranks have begun, and what is on its way to them.

    Attributes:
        entries: of each rank, in order.
    """

    def __init__(self, net: Net, overheads: list[int], problem: Problem) -> None:
        num_rows, num_ranks = len(net.duration), len(net.limit)
        self.entries: list[list[_Entry]] = [[] for _ in range(num_ranks)]
        self._net = net
        self._overheads = overheads
        self._num_microbatches = problem.num_microbatches
        self._num_parts = problem.max_sub_blocks
        receiving = {target for target in net.target if target >= 0}
        self._ready = [
            [NEVER if row in receiving else 0] * self._num_microbatches for row in range(num_rows)
        ]
        self._done = [0] * num_rows  # parts that have begun
        self._held = [0] * num_ranks
        self._busy = [0] * num_ranks
        self._last_kind = [_F] * num_ranks  # of the F's and I's that are done
        self._windows: dict[int, list[tuple[int, int]]] = {}  # per channel, taken
        self._events = [(0, rank) for rank in range(num_ranks)]
        self._events += [(gate, net.rank[row]) for row, gate in enumerate(net.gate) if gate]
        heapify(self._events)

    def run(self) -> None:
        """Runs every part once."""
        while self._events:
            now, rank = heappop(self._events)
            if self._busy[rank] <= now:
                row = self._chosen(rank, now)
                if row is not None:
                    self._start(rank, row, now)

    def _chosen(self, rank: int, now: int) -> int | None:
        """The row whose next part starts now; None: none is ready."""
        ready: dict[int, int] = {}  # by kind
        for row in self._rows(rank):
            if self._can_start(rank, row, now):
                kind = row % 3
                if kind not in ready or (kind == _I and row < ready[kind]):
                    ready[kind] = row
        wanted = self._preference(rank, can_turn=_I in ready)
        return next((ready[kind] for kind in wanted if kind in ready), None)

    def _rows(self, rank: int) -> list[int]:
        return list(self._net.rows[self._net.first[rank] : self._net.first[rank + 1]])

    def _can_start(self, rank: int, row: int, now: int) -> bool:
        microbatch = self._done[row] // self._num_parts
        if microbatch == self._num_microbatches or self._lacks_memory(rank, row):
            return False
        after = self._net.after[row]
        if after >= 0 and self._done[after] < (microbatch + 1) * self._num_parts:
            return False
        return max(self._ready[row][microbatch], self._net.gate[row]) <= now

    def _lacks_memory(self, rank: int, row: int) -> bool:
        net, taken = self._net, self._share(self._net.taken[row], row)
        return taken > 0 and self._held[rank] + taken + net.reserve[row] > net.limit[rank]

    def _preference(self, rank: int, *, can_turn: bool) -> tuple[int, ...]:
        """Kinds in the order in which they are wanted; ``can_turn``: an I is ready."""
        rows = self._rows(rank)
        is_warming_up = not can_turn and not any(self._done[row] for row in rows if row % 3 == _I)
        if self._last_kind[rank] != _I and not is_warming_up:
            return _I, _F, _W
        num_blocks = self._num_microbatches * self._num_parts
        lacks_memory = any(
            self._done[row] < num_blocks and self._lacks_memory(rank, row) for row in rows
        )
        return (_W, _I, _F) if lacks_memory else (_F, _I, _W)

    def _start(self, rank: int, row: int, now: int) -> None:
        net = self._net
        microbatch, part = divmod(self._done[row], self._num_parts)
        overhead = self._overheads[row]
        duration = self._share(net.duration[row] - overhead, row)
        self._held[rank] += self._share(net.taken[row], row) - self._share(net.freed[row], row)
        self._done[row] += 1
        is_new = self._add_entry(rank, row * self._num_microbatches + microbatch, part)
        self._busy[rank] = end = now + duration + overhead * is_new
        is_last = part == self._num_parts - 1
        if is_last and row % 3 != _W:
            self._last_kind[rank] = row % 3
        heappush(self._events, (end, rank))
        if is_last and net.target[row] >= 0:
            arrives = self._send(row, end, now)
            self._ready[net.target[row]][microbatch] = arrives
            heappush(self._events, (arrives, net.rank[net.target[row]]))

    def _share(self, total: int, row: int) -> int:
        """What the next part of a row has of what its op has."""
        part = self._done[row] % self._num_parts
        return share_of(total, Part(part, part + 1, self._num_parts))

    def _add_entry(self, rank: int, op: int, part: int) -> bool:
        """Notes a part; False: it goes on with the entry before."""
        entries = self.entries[rank]
        if part and entries[-1].op == op:
            entries[-1] = _Entry(op, entries[-1].part._replace(end=part + 1))
            return False
        entries.append(_Entry(op, Part(part, part + 1, self._num_parts)))
        return True

    def _send(self, row: int, ready: int, now: int) -> int:
        """Takes the first free window of the link; returns when the message is there."""
        net = self._net
        channel = max(net.own[row], net.shared[row])
        if channel >= 0:
            windows = self._windows.setdefault(channel, [])
            while windows and windows[0][1] <= now:
                windows.pop(0)
            start = ready
            for begin, end in windows:
                if start + net.occupancy[row] <= begin:
                    break
                start = max(start, end)
            ready = start + net.occupancy[row]
            insort(windows, (start, ready))
        return ready + net.latency[row]
