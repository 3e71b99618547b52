"""An order as a graph: when everything starts, what is critical, and what a move would do.

Nodes are ops (row x M + microbatch, as in `kernel`) and, after them, the messages that occupy or
share a channel. Ranks and channels are machines, each with a sequence of nodes. A node starts once
the one before it on its machine has ended, and once its one input is there: an op's message, or a
message's op. Memory is a matter of a rank's sequence alone, as the rank runs one op at a time.

A move takes one node to another place of its machine; only what comes later or earlier than the
nodes in between is worked out anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosspipe_ray.planners.kernel import Net

NONE = -1


@dataclass(frozen=True, slots=True)
class Move:
    """Node at ``source`` of a machine's sequence goes to ``target``; those in between make room."""

    machine: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Jobs:
    """What no order changes; all per node.

    Attributes:
        row: of the op, or of the message's op.
        before: the node whose end is waited for; -1: none.
        lag: time from the end of ``before`` on.
        after: the node that waits; the inverse of ``before``.
        gate: no start before.
        finish: time from the end to the end of the step, at least.
        taken: bytes that must be free when it starts.
        freed: bytes that are free again when it ends.
    """

    num_microbatches: int
    row: Sequence[int]
    duration: Sequence[int]
    before: Sequence[int]
    lag: Sequence[int]
    after: Sequence[int]
    gate: Sequence[int]
    finish: Sequence[int]
    taken: Sequence[int]
    freed: Sequence[int]


def jobs_of(net: Net, num_microbatches: int) -> Jobs:
    """The nodes of a problem: ops, then messages by row."""
    num_rows, count = len(net.duration), num_microbatches
    carriers = [row for row in range(num_rows) if net.shared[row] >= 0 or net.occupancy[row]]
    rows = [row for row in (*range(num_rows), *carriers) for _ in range(count)]
    before, lag = [NONE] * len(rows), [0] * (len(rows) + 1)  # one more, for ``after`` -1
    first_message = {row: (num_rows + i) * count for i, row in enumerate(carriers)}
    for row, target in enumerate(net.target):
        for m in range(count if target >= 0 else 0):
            sender = row * count + m
            if row in first_message:
                message = first_message[row] + m
                before[message], sender = sender, message
            before[target * count + m], lag[target * count + m] = sender, net.latency[row]
    after = [NONE] * len(rows)
    for node, other in enumerate(before):
        if other >= 0:
            after[other] = node
    num_ops = num_rows * count
    of_ops = range(num_ops)
    rest = [0] * (len(rows) - num_ops)
    return Jobs(
        num_microbatches=count,
        row=rows,
        duration=[net.duration[rows[op]] for op in of_ops]
        + [net.occupancy[row] for row in rows[num_ops:]],
        before=before,
        lag=lag,
        after=after,
        gate=[net.gate[rows[op]] for op in of_ops] + rest,
        finish=[net.finish[rows[op]] for op in of_ops] + rest,
        taken=[net.taken[rows[op]] for op in of_ops] + rest,
        freed=[net.freed[rows[op]] for op in of_ops] + rest,
    )


class Graph:
    """Sequences of all machines, and the times that they lead to.

    Times have one entry more than there are nodes: 0, for the neighbour -1 of a node without one.

    Attributes:
        sequences: per machine, its nodes.
        machine: per node.
        ends: per node, when it ends at the earliest.
        rests: per node, the least time from its start to the end of the step.
        order: nodes such that all come after what they wait for.
        held: per node, bytes that its rank holds before it starts.
        makespan_ns: the longest path.
    """

    def __init__(self, jobs: Jobs, sequences: Sequence[Sequence[int]]) -> None:
        size = len(jobs.row)
        self.jobs = jobs
        self.sequences = [list(sequence) for sequence in sequences]
        self.machine = [NONE] * size
        self.previous, self._next = [NONE] * size, [NONE] * size
        self.held = [0] * size
        for machine, sequence in enumerate(self.sequences):
            for node in sequence:
                self.machine[node] = machine
            self._link(machine, 0, len(sequence))
        self.ends, self.rests = [0] * (size + 1), [0] * (size + 1)
        self._last = [node for node in range(size) if jobs.finish[node]]
        self.order = list(range(size))
        self._position = [*range(size), NONE]
        if not self._evaluate(0, size - 1):
            raise ValueError("the order waits for itself")

    def move(self, move: Move) -> bool:
        """Makes a move, or leaves all as it is where ops would wait for each other for ever."""
        sequence = self.sequences[move.machine]
        low, high = sorted((move.source, move.target))
        places = [self._position[node] for node in sequence[low : high + 1]]
        self._shift(move.machine, move.source, move.target)
        if self._evaluate(places[0], places[-1]):
            return True
        self._shift(move.machine, move.target, move.source)
        return False

    def _shift(self, machine: int, source: int, target: int) -> None:
        sequence = self.sequences[machine]
        sequence.insert(target, sequence.pop(source))
        low, high = sorted((source, target))
        self._link(machine, max(0, low - 1), min(len(sequence), high + 2))

    def _link(self, machine: int, low: int, high: int) -> None:
        """Neighbours and memory of a part of a sequence."""
        sequence, jobs = self.sequences[machine], self.jobs
        for place in range(low, high):
            node = sequence[place]
            before = sequence[place - 1] if place else NONE
            self.previous[node] = before
            self._next[node] = sequence[place + 1] if place + 1 < len(sequence) else NONE
            self.held[node] = (
                self.held[before] + jobs.taken[before] - jobs.freed[before] if place else 0
            )

    def _evaluate(self, low: int, high: int) -> bool:
        """Brings the times up to date; only between two places of the old order new arcs may run.

        Returns:
            False: there is a cycle, and no time has changed.
        """
        part = self._sorted(low, high)
        if len(part) <= high - low:
            return False
        self.order[low : high + 1] = part
        for place, node in enumerate(part, low):
            self._position[node] = place
        self._run_forwards(low)
        self._run_backwards(high)
        last = [sequence[-1] for sequence in self.sequences if sequence]
        finish = self.jobs.finish
        self.makespan_ns = max(self.ends[node] + finish[node] for node in (*last, *self._last))
        return True

    def _sorted(self, low: int, high: int) -> list[int]:
        """A part of the order such that all run after what they wait for; shorter: a cycle."""
        position, previous, before = self._position, self.previous, self.jobs.before
        part = self.order[low : high + 1]
        missing = {
            node: (position[previous[node]] >= low) + (position[before[node]] >= low)
            for node in part
        }
        done = [node for node in part if not missing[node]]
        for node in done:
            for other in (self._next[node], self.jobs.after[node]):
                if other in missing:
                    missing[other] -= 1
                    if not missing[other]:
                        done.append(other)
        return done

    def _run_forwards(self, low: int) -> None:
        jobs, ends, previous = self.jobs, self.ends, self.previous
        duration, before, lag, gate = jobs.duration, jobs.before, jobs.lag, jobs.gate
        for node in self.order[low:]:
            start = ends[before[node]] + lag[node]
            free = ends[previous[node]]
            if free > start:
                start = free
            if gate[node] > start:
                start = gate[node]
            ends[node] = start + duration[node]

    def _run_backwards(self, high: int) -> None:
        jobs, rests, following = self.jobs, self.rests, self._next
        duration, after, lag, finish = jobs.duration, jobs.after, jobs.lag, jobs.finish
        for node in self.order[high::-1]:
            waiting = after[node]
            rest = rests[waiting] + lag[waiting]
            own = rests[following[node]]
            if own > rest:
                rest = own
            if finish[node] > rest:
                rest = finish[node]
            rests[node] = rest + duration[node]
