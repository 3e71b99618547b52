"""In which order the pipeline goes through the ranks: a short way, or one with room for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.problem import Problem
from crosspipe_ray.topology import topology_of

_MOST_EXACT = 10  # of so many, 20 ms
_MOST_SEARCHED = 256  # of so many, less than a second

_Delays = list[list[int]]


def best_order(problem: Problem) -> tuple[int, ...]:
    """Ranks cluster by cluster, with the least delay between neighbours, there and back.

    Of ranks that are equally near, those with the most memory go first, as the first ranks hold a
    microbatch the longest, then those with the lowest index. Exact for up to ten ranks; a local
    optimum for up to 256; of more, only the clusters are put in order.
    """
    clusters = [rank.cluster for rank in problem.ranks]
    ranks = sorted(range(len(clusters)), key=lambda rank: (-_memory(problem, rank), rank))
    firsts = {clusters[rank]: rank for rank in reversed(ranks)}
    names = list(dict.fromkeys(clusters[rank] for rank in ranks))
    way = _shortest_way(_delays(problem, [firsts[name] for name in names]))
    turn = {names[index]: turn for turn, index in enumerate(way)}
    ranks.sort(key=lambda rank: turn[clusters[rank]])
    if len(ranks) > _MOST_SEARCHED:
        return tuple(ranks)
    delays = _within_clusters(_delays(problem, ranks), [clusters[rank] for rank in ranks])
    return tuple(ranks[index] for index in _shortest_way(delays))


def has_room(problem: Problem, order: Sequence[int]) -> bool:
    """Whether one microbatch fits into the ranks in this order, with one stage on each."""
    end = 0
    for turn, rank in enumerate(order, start=1):
        end = _filled(problem, rank, end, turn)
    return end == len(problem.layers)


def roomiest_order(problem: Problem) -> tuple[int, ...]:
    """The order in which ranks hold the most layers, one stage each, wherever the ranks are.

    Each holds as many as it can, which is exact where each has room for any one layer. For more
    than ten ranks, the order of their indices.
    """
    if len(problem.ranks) > _MOST_EXACT:
        return tuple(range(len(problem.ranks)))

    @cache
    def filled(ranks: frozenset[int]) -> tuple[int, tuple[int, ...]]:
        """How many layers these ranks hold at most, and their order."""
        before = {rank: filled(ranks - {rank}) for rank in ranks}
        return max(
            (
                (_filled(problem, rank, end, len(ranks)), (*order, rank))
                for rank, (end, order) in before.items()
            ),
            default=(0, ()),
        )

    return filled(frozenset(range(len(problem.ranks))))[1]


def _filled(problem: Problem, rank: int, first: int, turn: int) -> int:
    """Where the layers end that a rank holds; each of the ranks after it is left one."""
    end, room = first, _memory(problem, rank)
    most = len(problem.layers) - len(problem.ranks) + turn
    while end < most and (room := room - problem.layers[end].least_bytes) >= 0:
        end += 1
    return end


def _memory(problem: Problem, rank: int) -> float:
    limit = problem.ranks[rank].memory_limit_bytes
    return math.inf if limit is None else limit


def _delays(problem: Problem, ranks: Sequence[int]) -> _Delays:
    """What each pair costs one microbatch; occupancy counts twice, as it is harder to hide."""
    num_bytes = max((layer.output_bytes for layer in problem.layers), default=0)
    pairs = [(src, dst) for src in ranks for dst in ranks if src != dst]
    one_way = {
        pair: route.latency_ns + 2 * route.occupancy_ns(route.carried_bytes(num_bytes))
        for pair, route in topology_of(problem, pairs).routes.items()
    }
    return [
        [one_way.get((src, dst), 0) + one_way.get((dst, src), 0) for dst in ranks] for src in ranks
    ]


def _within_clusters(delays: _Delays, clusters: Sequence[str]) -> _Delays:
    """The same, but that it costs more than any way to leave a cluster."""
    more = 1 + len(delays) * max(map(max, delays))
    return [
        [delay + more * (here != there) for delay, there in zip(row, clusters, strict=True)]
        for row, here in zip(delays, clusters, strict=True)
    ]


def _shortest_way(delays: _Delays) -> Sequence[int]:
    """Through all nodes, once each; of equal ones, the first in the order of the nodes."""
    if len(delays) <= _MOST_EXACT:
        return _exact_way(delays)
    return _improved_way(np.array(delays, dtype=float))


def _exact_way(delays: _Delays) -> Sequence[int]:
    """By dynamic programming over what is left to visit (Held and Karp, 1962)."""

    @cache
    def way(start: int, left: frozenset[int]) -> tuple[int, tuple[int, ...]]:
        """Its length and its nodes."""
        ways = ((node, way(node, left - {node})) for node in left)
        length, nodes = min(
            ((delays[start][node] + length, nodes) for node, (length, nodes) in ways),
            default=(0, ()),
        )
        return length, (start, *nodes)

    every = frozenset(range(len(delays)))
    return min(way(start, every - {start}) for start in every)[1]


def _improved_way(delays: NDArray[np.float64]) -> Sequence[int]:
    """From the order of the nodes, by turning round the part that gains the most (2-opt)."""
    num_nodes = len(delays)
    around = np.pad(delays, (0, 1))  # with an end that is equally near to all
    way = np.array([num_nodes, *range(num_nodes), num_nodes])
    while True:
        apart = around[np.ix_(way, way)]
        steps = np.diagonal(apart, 1)
        gains = np.triu(steps[:, None] + steps - apart[:-1, :-1] - apart[1:, 1:], 1)
        before, last = np.unravel_index(gains.argmax(), gains.shape)
        if gains[before, last] <= 0:
            return [int(node) for node in way[1:-1]]
        way[before + 1 : last + 1] = way[before + 1 : last + 1][::-1].copy()
