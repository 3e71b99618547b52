"""Improves an order by moves on its critical path: a tabu search over ranks and shared channels.

A longest path through the graph of an order is cut into blocks: nodes that run on one machine
without a pause. Only a move within a block can make the step shorter, so those are tried: some
are drawn, the one with the best estimate is made, even if it is worse, and what it turned round
stays so for a while (Nowicki and Smutnicki 1996; the estimate is of Balas and Vazacopoulos 1998).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.disjunctive import Graph, Jobs, Move, jobs_of
from crosspipe_ray.planners.kernel import NEVER, Net
from crosspipe_ray.planners.network import Order, fresh_state, net_of, order_of
from crosspipe_ray.problem import Problem
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline

_NUM_DRAWN = 24  # nodes of a critical path whose moves are estimated
_TENURE = 30  # steps, up to twice that, for which what was turned round stays so
_PATIENCE = 1000  # steps without a new best before the search goes back to it


def improved(
    problem: Problem,
    known: Order,
    *,
    time_limit_s: float,
    iterations: int,
    seed: int = 0,
    enough_ns: float = 0.0,
) -> Order:
    """A shorter order than a known one, or that itself.

    Args:
        problem: with stages, any placement.
        known: a valid order of it; one that runs B where the backward is split is not improved.
        time_limit_s: no new step starts after it.
        iterations: number of steps; with a generous time limit the result depends on it and the
            seed alone.
        seed: of the search.
        enough_ns: a makespan that is good enough.
    """
    deadline = time.monotonic() + time_limit_s
    if any(op.kind is Kind.B and not problem.is_fused(op.stage) for op in _ops(known)):
        return known
    net = net_of(problem, stage_costs(problem))
    jobs = jobs_of(net, problem.num_microbatches)
    timeline = simulate(problem, known.schedule, send_order=known.sends)
    graph = Graph(jobs, _sequences(net, jobs, timeline))
    search = _Search(net, graph, random.Random(seed))
    for _ in range(iterations):
        if search.best_ns <= enough_ns or time.monotonic() > deadline:
            break
        search.step()
    order = _order(problem, net, jobs, search)
    made = simulate(problem, order.schedule, send_order=order.sends)
    return order if made.makespan_ns < timeline.makespan_ns else known


def _ops(order: Order) -> Iterator[Op]:
    return (op for ops in order.schedule.ranks for op in ops)


class _Search:
    """The order at hand, the best one, and what may not be turned back yet."""

    def __init__(self, net: Net, graph: Graph, rng: random.Random) -> None:
        self._net, self._graph, self._rng = net, graph, rng
        self._limit = [*net.limit, *([NEVER] * (len(graph.sequences) - len(net.limit)))]
        self._forbidden: dict[tuple[int, int], int] = {}  # (first, second): until which step
        self.num_steps = self._found_at = 0
        self._remember()

    def step(self) -> None:
        """One move; back to the best order after many in vain."""
        self.num_steps += 1
        if self.num_steps - self._found_at > _PATIENCE:
            self._graph = Graph(self._graph.jobs, self.best)
            self._found_at = self.num_steps
            self._forbidden.clear()
        move = self._chosen()
        if move is None:
            return
        turned = list(self._turned(move))
        if self._graph.move(move):
            until = self.num_steps + self._rng.randrange(_TENURE, 2 * _TENURE)
            self._forbidden.update(((second, first), until) for first, second in turned)
            if self._graph.makespan_ns < self.best_ns:
                self._remember()

    def _remember(self) -> None:
        self.best_ns = self._graph.makespan_ns
        self.best = [list(sequence) for sequence in self._graph.sequences]
        self.best_run = list(self._graph.order)
        self._found_at = self.num_steps

    def _chosen(self) -> Move | None:
        """The move with the best estimate of those drawn; equals by lot."""
        best, best_key = None, (float("inf"), 0.0)
        for move in self._drawn():
            estimate = self._estimate(move)
            key = (estimate, self._rng.random())
            if key < best_key and (estimate < self.best_ns or not self._is_forbidden(move)):
                best, best_key = move, key
        return best

    def _is_forbidden(self, move: Move) -> bool:
        return any(self._forbidden.get(pair, 0) > self.num_steps for pair in self._turned(move))

    def _turned(self, move: Move) -> Iterator[tuple[int, int]]:
        """(first, second) of all nodes that the move turns round, as they are after it."""
        sequence = self._graph.sequences[move.machine]
        node = sequence[move.source]
        if move.target < move.source:
            return ((node, other) for other in sequence[move.target : move.source])
        return ((other, node) for other in sequence[move.source + 1 : move.target + 1])

    def _drawn(self) -> Iterator[Move]:
        blocks, rng = self._blocks(), self._rng
        if not blocks:
            return
        weights = [high - low for _, low, high in blocks]
        for machine, low, high in rng.choices(blocks, weights, k=_NUM_DRAWN):
            nearby = (low, high, min(high, low + 1), max(low, high - 1))
            source = rng.choice(nearby) if rng.random() < 0.5 else rng.randint(low, high)
            first = self._reach(machine, source, low)
            last = self._reach(machine, source, high)
            # in the order of a tuple: that of a set would be another's affair
            targets = dict.fromkeys((first, max(first, source - 1), min(last, source + 1), last))
            yield from (Move(machine, source, target) for target in targets if target != source)

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(machine, first and last position) of the blocks of a longest path, drawn by lot."""
        graph, ends = self._graph, self._graph.ends
        jobs, length = graph.jobs, 1
        node: int = self._rng.choice(
            [n for n in range(len(jobs.row)) if ends[n] + jobs.finish[n] == graph.makespan_ns]
        )
        blocks = []
        while node >= 0:
            before, previous = jobs.before[node], graph.previous[node]
            start = ends[node] - jobs.duration[node]
            is_by_job = before >= 0 and ends[before] + jobs.lag[node] == start
            is_by_machine = previous >= 0 and ends[previous] == start
            if is_by_machine and not (is_by_job and self._rng.random() < 0.5):
                node, length = previous, length + 1
                continue
            if length > 1:
                place = graph.sequences[graph.machine[node]].index(node)
                blocks.append((graph.machine[node], place, place + length - 1))
            node, length = before if is_by_job else -1, 1
        return blocks

    def _reach(self, machine: int, source: int, end: int) -> int:
        """How far towards the end of its block a node may go."""
        sequence = self._graph.sequences[machine]
        node, direction = sequence[source], 1 if end > source else -1
        for place in range(source, end, direction):
            other = sequence[place + direction]
            pair = (node, other) if direction > 0 else (other, node)
            if not self._may_turn(*pair):
                return place
        return end

    def _may_turn(self, first: int, second: int) -> bool:
        """Whether the second node of a block may come before the first, as far as one sees."""
        graph, jobs = self._graph, self._graph.jobs
        rows, count = jobs.row, jobs.num_microbatches
        if rows[first] == rows[second]:
            return False
        if first % count == second % count and self._net.after[rows[second]] == rows[first]:
            return False
        before, after = jobs.before[second], jobs.after[first]
        if before < 0 or after < 0:
            return True
        # were there a path from the first through ``after`` to the second, it would end so late
        return before != first and graph.ends[after] > graph.ends[before]

    def _estimate(self, move: Move) -> float:
        """The longest path through the nodes that change places; infinite where memory is short."""
        graph, jobs = self._graph, self._graph.jobs
        sequence = graph.sequences[move.machine]
        low, high = sorted((move.source, move.target))
        window = sequence[low : high + 1]
        held = graph.held[window[0]]
        window.insert(move.target - low, window.pop(move.source - low))
        if not self._has_room(window, held, self._limit[move.machine]):
            return float("inf")
        end = graph.ends[sequence[low - 1]] if low else 0
        ends = []
        for node in window:
            start = max(end, jobs.gate[node], graph.ends[jobs.before[node]] + jobs.lag[node])
            end = start + jobs.duration[node]
            ends.append(end)
        rest = graph.rests[sequence[high + 1]] if high + 1 < len(sequence) else 0
        longest = 0
        for node in reversed(window):
            after = jobs.after[node]
            rest = max(rest, jobs.finish[node], graph.rests[after] + jobs.lag[after])
            longest = max(longest, ends.pop() + rest)
            rest += jobs.duration[node]
        return longest

    def _has_room(self, window: list[int], held: int, limit: int) -> bool:
        jobs = self._graph.jobs
        for node in window:
            held += jobs.taken[node]
            if held > limit:
                return False
            held -= jobs.freed[node]
        return True


def _sequences(net: Net, jobs: Jobs, timeline: Timeline) -> list[list[int]]:
    """Nodes of the ranks, then of the channels in use."""
    count, num_ops = jobs.num_microbatches, len(net.duration) * jobs.num_microbatches
    ranks = [[_op_of(span.op, count) for span in spans] for spans in timeline.ranks]
    message_of = {jobs.before[node]: node for node in range(num_ops, len(jobs.row))}
    channels: dict[int, list[int]] = {}
    for send in timeline.sends:
        node = message_of.get(_op_of(send.op, count))
        if node is not None:
            row = jobs.row[node]
            channels.setdefault(max(net.own[row], net.shared[row]), []).append(node)
    return [*ranks, *channels.values()]


def _op_of(op: Op, num_microbatches: int) -> int:
    """The kernel's number of a compute op, or of the op that a message comes from."""
    stage, kind, m = op
    assert m is not None, "compute ops and messages have a microbatch"
    row = {Kind.F: 0, Kind.SEND_F: 0, Kind.W: 2}.get(kind, 1)
    return (3 * stage + row) * num_microbatches + m


def _order(problem: Problem, net: Net, jobs: Jobs, search: _Search) -> Order:
    """The best order, by way of what the kernel would have left."""
    count = problem.num_microbatches
    state = fresh_state(net, count)
    for rank, sequence in enumerate(search.best[: len(net.limit)]):
        begin = count * net.first[rank]
        state.order[begin : begin + len(sequence)] = sequence
        state.length[rank] = len(sequence)
    first_message = len(net.duration) * count
    shared = [
        node
        for node in search.best_run
        if node >= first_message and net.shared[jobs.row[node]] >= 0
    ]
    state.sends[: len(shared)] = [jobs.before[node] for node in shared]
    state.num_sends[0] = len(shared)
    return order_of(problem, net, state)
