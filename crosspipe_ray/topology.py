"""Which way messages go: the problem's links, resolved to one route per pair of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crosspipe_ray.errors import ProblemError

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


def topology_of(problem: Problem) -> Topology:
    """Resolves the links of a problem.

    A link between two ranks goes before one between their clusters.

    Raises:
        ProblemError: two links of the same kind for one pair.
    """
    channels: dict[str, int] = {}
    routes: dict[tuple[int, int], Route] = {}
    by_precision = sorted(problem.links, key=lambda link: isinstance(link.src, str))
    for link in by_precision:
        for pair in _pairs(problem, link):
            known = routes.get(pair)
            if known is None:
                channel = channels.setdefault(_channel_name(link, pair), len(channels))
                routes[pair] = Route(channel, round(link.latency_us * 1000), link)
            elif type(known.link.src) is type(link.src):
                raise ProblemError(
                    f"links: {link.src}->{link.dst} is given twice for ranks {pair[0]}->{pair[1]}"
                )
    return Topology(routes, tuple(channels))


def _pairs(problem: Problem, link: Link) -> list[tuple[int, int]]:
    if isinstance(link.src, int) and isinstance(link.dst, int):
        return [(link.src, link.dst)]
    clusters = [rank.cluster for rank in problem.ranks]
    return [
        (src, dst)
        for src, src_cluster in enumerate(clusters)
        for dst, dst_cluster in enumerate(clusters)
        if src != dst and (src_cluster, dst_cluster) == (link.src, link.dst)
    ]


def _channel_name(link: Link, pair: tuple[int, int]) -> str:
    if link.channel is not None and link.channel != PER_PAIR:
        return link.channel
    if isinstance(link.src, int) or link.channel == PER_PAIR:
        return f"{pair[0]}->{pair[1]}"
    return f"{link.src}->{link.dst}"
