"""An order as the flat sequences that `tabu` works on, and back.

Sequences per node have one entry more than there are nodes: for the neighbour of one without.
Nodes are ops (row x M + microbatch, as in `greedy.kernel`) and, after them, messages that occupy or
share a channel. Machines are the ranks and, after them, the channels in use.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crosspipe_ray.compiled import NEVER, Numbers
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.bounds.relaxation import offsets
from crosspipe_ray.planners.greedy.kernel import Net
from crosspipe_ray.planners.greedy.network import fresh_state, order_of
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem
from crosspipe_ray.timeline import Timeline

BEST_NS, MAKESPAN_NS, NUM_STEPS, FOUND_AT, LOT = range(5)  # entries of ``Run.numbers``
NUM_FORBIDDEN = 1 << 16


class Jobs(NamedTuple):
    """What no order changes, read only; per node where nothing else is said.

    Attributes:
        row: of the op, or of the message's op.
        machine: that runs it.
        duration: on its machine.
        before: the node whose end is waited for.
        lag: time from the end of ``before`` on.
        after: the node that waits; the inverse of ``before``.
        needed: an op of the same rank that comes first.
        gate: no start before.
        finish: time from the end to the end of the step, at least.
        taken: bytes that must be free when it starts.
        freed: bytes that are free again when it ends.
        closing: nodes with a ``finish``.
        first: per machine and one more, where its part of ``Run.sequence`` begins.
        limit: per machine, bytes.
        is_mixed: per machine, 1 where ops of several rows take memory, else 0.
    """

    row: Numbers
    machine: Numbers
    duration: Numbers
    before: Numbers
    lag: Numbers
    after: Numbers
    needed: Numbers
    gate: Numbers
    finish: Numbers
    taken: Numbers
    freed: Numbers
    closing: Numbers
    first: Numbers
    limit: Numbers
    is_mixed: Numbers


class Run(NamedTuple):
    """The order at hand, the best one, and what may not be turned back yet.

    Attributes:
        sequence: nodes, machine after machine.
        place: per node, where it is in ``sequence``.
        previous, following: per node, its neighbours on its machine.
        ends: per node, when it ends at the earliest.
        rests: per node, the least time from its start to the end of the step.
        held: per node, bytes that its rank holds before it starts.
        order: nodes such that all come after what they wait for.
        position: per node, where it is in ``order``.
        best, best_order: ``sequence`` and ``order`` of the shortest so far.
        forbidden: until which step a pair of nodes stays as it is; pairs share entries.
        blocks, scratch, other_scratch: per node.
        numbers: those named above.
    """

    sequence: Numbers
    place: Numbers
    previous: Numbers
    following: Numbers
    ends: Numbers
    rests: Numbers
    held: Numbers
    order: Numbers
    position: Numbers
    best: Numbers
    best_order: Numbers
    forbidden: Numbers
    blocks: Numbers
    scratch: Numbers
    other_scratch: Numbers
    numbers: Numbers


def start_of(net: Net, num_microbatches: int, timeline: Timeline, *, seed: int) -> tuple[Jobs, Run]:
    """The nodes of a problem, and a run that begins with the order of a timeline."""
    first_message = _first_messages(net, num_microbatches)
    arcs = _arcs(net, num_microbatches, first_message)
    sequences = _sequences(net, num_microbatches, first_message, timeline)
    jobs = _jobs(net, num_microbatches, first_message, arcs, sequences)
    return jobs, _run(len(jobs.row), [node for each in sequences for node in each], seed)


def _first_messages(net: Net, count: int) -> dict[int, int]:
    """Of the rows whose messages are nodes, in order: the node of the first one."""
    rows = range(len(net.duration))
    carriers = [row for row in rows if net.shared[row] >= 0 or net.occupancy[row]]
    return {row: node * count for node, row in enumerate(carriers, len(net.duration))}


def _jobs(
    net: Net,
    count: int,
    first_message: Mapping[int, int],
    arcs: tuple[list[int], list[int], list[int]],
    sequences: Sequence[Sequence[int]],
) -> Jobs:
    before, after, lag = arcs
    rows = [row for row in (*range(len(net.duration)), *first_message) for _ in range(count)]
    num_ops, none = len(net.duration) * count, len(rows)
    of_ops, others = rows[:num_ops], [0] * (none - num_ops + 1)  # one more, for ``none``
    machine = [0] * none
    for index, sequence in enumerate(sequences):
        for node in sequence:
            machine[node] = index
    finish = [net.finish[row] for row in of_ops] + others
    return Jobs(
        row=rows,
        machine=machine,
        duration=[net.duration[row] for row in of_ops]
        + [net.occupancy[row] for row in rows[num_ops:]],
        before=before,
        lag=lag,
        after=after,
        needed=[
            net.after[row] * count + node % count if net.after[row] >= 0 else none
            for node, row in enumerate(of_ops)
        ]
        + [none] * len(others),
        gate=[net.gate[row] for row in of_ops] + others,
        finish=finish,
        taken=[net.taken[row] for row in of_ops] + others,
        freed=[net.freed[row] for row in of_ops] + others,
        closing=[node for node in range(num_ops) if finish[node]],
        first=offsets(map(len, sequences)),
        limit=[*net.limit, *([NEVER] * (len(sequences) - len(net.limit)))],
        is_mixed=_mixed(net, len(sequences)),
    )


def _mixed(net: Net, num_machines: int) -> list[int]:
    """Which machines are ranks that hold microbatches of several stages."""
    rows = Counter(net.rank[row] for row, taken in enumerate(net.taken) if taken)
    return [int(rows[machine] > 1) for machine in range(num_machines)]


def _arcs(
    net: Net, count: int, first_message: Mapping[int, int]
) -> tuple[list[int], list[int], list[int]]:
    """Per node, what it waits for, what waits for it, and the lag on the way here."""
    none = (len(net.duration) + len(first_message)) * count
    before, after, lag = [none] * (none + 1), [none] * (none + 1), [0] * (none + 1)
    for row, target in enumerate(net.target):
        for m in range(count if target >= 0 else 0):
            sender, receiver = row * count + m, target * count + m
            if row in first_message:
                message = first_message[row] + m
                before[message], after[sender], sender = sender, message, message
            before[receiver], after[sender], lag[receiver] = sender, receiver, net.latency[row]
    return before, after, lag


def _sequences(
    net: Net, count: int, first_message: Mapping[int, int], timeline: Timeline
) -> list[list[int]]:
    """Nodes of the ranks, then of the channels in use."""
    ranks = [[_op_of(span.op, count) for span in spans] for spans in timeline.ranks]
    channels: dict[int, list[int]] = {}
    for send in timeline.sends:
        row, m = divmod(_op_of(send.op, count), count)
        if row in first_message:
            channel = max(net.own[row], net.shared[row])
            channels.setdefault(channel, []).append(first_message[row] + m)
    return [*ranks, *channels.values()]


def _op_of(op: Op, num_microbatches: int) -> int:
    """The kernel's number of a compute op, or of the op that a message comes from."""
    stage, kind, m = op
    assert m is not None, "compute ops and messages have a microbatch"
    row = {Kind.F: 0, Kind.SEND_F: 0, Kind.W: 2}.get(kind, 1)
    return (3 * stage + row) * num_microbatches + m


def _run(num_nodes: int, sequence: list[int], seed: int) -> Run:
    def zeros() -> list[int]:
        return [0] * (num_nodes + 1)

    return Run(
        sequence=sequence,
        place=zeros(),
        previous=[num_nodes] * (num_nodes + 1),
        following=[num_nodes] * (num_nodes + 1),
        ends=zeros(),
        rests=zeros(),
        held=zeros(),
        order=list(range(num_nodes)),
        position=[*range(num_nodes), -1],
        best=[*sequence],
        best_order=list(range(num_nodes)),
        forbidden=[0] * NUM_FORBIDDEN,
        blocks=zeros(),
        scratch=zeros(),
        other_scratch=zeros(),
        numbers=[0, 0, 0, 0, random.Random(seed).randrange(1, (1 << 31) - 1)],
    )


def best_of(problem: Problem, net: Net, jobs: Jobs, run: Run) -> Order:
    """The best order, by way of what the kernel would have left."""
    count = problem.num_microbatches
    state = fresh_state(net, count)
    for rank in range(len(net.limit)):
        low, high = jobs.first[rank], jobs.first[rank + 1]
        at = count * net.first[rank]
        state.order[at : at + high - low] = run.best[low:high]
        state.length[rank] = high - low
    first_message = len(net.duration) * count
    shared = [
        node for node in run.best_order if node >= first_message and net.shared[jobs.row[node]] >= 0
    ]
    state.sends[: len(shared)] = [jobs.before[node] for node in shared]
    state.num_sends[0] = len(shared)
    return order_of(problem, net, state)
