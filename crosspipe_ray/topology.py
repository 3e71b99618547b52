"""Which way messages go: the problem's links, resolved to one route per pair of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from crosspipe_ray.problem import Link, Problem

_NS_PER_S = 1_000_000_000
PER_PAIR = "per_pair"


@dataclass(frozen=True, slots=True)
class Route:
    """How messages go from one rank to another.

    Attributes:
        channel: index of the channel that the messages occupy, one at a time.
        latency_ns: from the end of the occupancy to the arrival.
        link: the link of the problem that it comes from.
    """

    channel: int
    latency_ns: int
    link: Link

    def carried_bytes(self, num_bytes: int) -> int:
        """What a message of so many bytes weighs on the link, after its codec."""
        codec = self.link.codec
        return codec.encoded_bytes(num_bytes) if codec else num_bytes

    def occupancy_ns(self, num_bytes: int) -> int:
        """Time for which a message occupies the channel: overhead + carried bytes / bandwidth."""
        rate = self._rate(num_bytes)
        transfer = num_bytes * _NS_PER_S / rate if rate else 0
        return round(self.link.message_overhead_us * 1000 + transfer)

    def _rate(self, num_bytes: int) -> float | None:
        curve = self.link.bandwidth_curve
        if curve is None:
            return self.link.bandwidth_bytes_per_s
        sizes, rates = zip(*curve, strict=True)
        return float(np.interp(num_bytes, sizes, rates))


@dataclass(frozen=True, slots=True)
class Topology:
    """Routes of all pairs of ranks that have a link; a pair without one takes no time."""

    routes: dict[tuple[int, int], Route]
    channels: tuple[str, ...]


def topology_of(problem: Problem, pairs: Iterable[tuple[int, int]] | None = None) -> Topology:
    """Resolves the links of a problem.

    A link between two ranks goes before one between their clusters.

    Args:
        problem: with links.
        pairs: of ranks that matter; default: all, which are many where ranks are many.
    """
    links = {(link.src, link.dst): link for link in problem.links}
    clusters = [rank.cluster for rank in problem.ranks]
    channels: dict[str, int] = {}
    routes: dict[tuple[int, int], Route] = {}
    for src, dst in permutations(range(len(clusters)), 2) if pairs is None else pairs:
        link = links.get((src, dst)) or links.get((clusters[src], clusters[dst]))
        if link is not None:
            name = _channel_name(link, (src, dst))
            channel = channels.setdefault(name, len(channels))
            routes[src, dst] = Route(channel, round(link.latency_us * 1000), link)
    return Topology(routes, tuple(channels))


def clusters_of(clusters: Sequence[str], src: int | str, dst: int | str) -> tuple[str, str]:
    """The clusters of a link's ends, each of which is a rank or a cluster already.

    >>> clusters_of(["us", "us", "eu"], 2, "us")
    ('eu', 'us')
    """
    first, second = (end if isinstance(end, str) else clusters[end] for end in (src, dst))
    return first, second


def _channel_name(link: Link, pair: tuple[int, int]) -> str:
    if link.channel is not None and link.channel != PER_PAIR:
        return link.channel
    if isinstance(link.src, int) or link.channel == PER_PAIR:
        return f"{pair[0]}->{pair[1]}"
    return f"{link.src}->{link.dst}"
