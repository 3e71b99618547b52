"""The arithmetic of an emulated link: when a packet arrives, and which segments are lost.

It knows no clock and no device: time comes in as a number, so tests need no WAN.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

Item = TypeVar("Item")

_NS_PER_S = 1_000_000_000
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One direction of a link.

    Attributes:
        latency_ns: from the end of the transmission to the arrival.
        bytes_per_s: None: transmission takes no time.
        jitter_ns: each packet arrives up to this much later; order is kept.
        loss: probability that a wire segment is lost.
        queue_ns: what would wait longer than this for its transmission is dropped.
    """

    latency_ns: int = 0
    bytes_per_s: float | None = None
    jitter_ns: int = 0
    loss: float = 0.0
    queue_ns: int = _NEVER


class DelayQueue(Generic[Item]):
    """First in, first out: packets on their way over one direction of a link.

    Args:
        shape: may be changed at any time; it holds for the packets pushed from then on.
        random: draws the jitter.
    """

    def __init__(self, shape: Shape, random: Random) -> None:
        self.shape = shape
        self._random = random
        self._on_the_way: deque[tuple[int, Item]] = deque()
        self._free_ns = 0
        self._last_arrive_ns = 0

    def push(self, item: Item, *, num_bytes: int, now_ns: int) -> bool:
        """Puts a packet on its way; False if the queue before the link is full."""
        shape = self.shape
        start_ns = max(now_ns, self._free_ns)
        if start_ns - now_ns > shape.queue_ns:
            return False
        rate = shape.bytes_per_s
        self._free_ns = start_ns + (round(num_bytes * _NS_PER_S / rate) if rate else 0)
        arrive_ns = self._free_ns + shape.latency_ns
        if shape.jitter_ns:
            arrive_ns += round(self._random.random() * shape.jitter_ns)
        self._last_arrive_ns = max(self._last_arrive_ns, arrive_ns)
        self._on_the_way.append((self._last_arrive_ns, item))
        return True

    @property
    def next_arrival_ns(self) -> int:
        """When the first packet arrives; far in the future if there is none."""
        return self._on_the_way[0][0] if self._on_the_way else _NEVER

    def arrived(self, now_ns: int) -> Iterator[Item]:
        """Takes out the packets that have arrived by now."""
        while self._on_the_way and self._on_the_way[0][0] <= now_ns:
            yield self._on_the_way.popleft()[1]

    def clear(self) -> int:
        """Loses everything that is on its way, and says how much; the line is free at once."""
        num_lost = len(self._on_the_way)
        self._on_the_way.clear()
        self._free_ns = 0
        self._last_arrive_ns = 0
        return num_lost


class Losses:
    """Independent losses, by drawing how many segments pass until the next one.

    Args:
        probability: of each segment.
        random: draws.
    """

    def __init__(self, probability: float, random: Random) -> None:
        self._probability = probability
        self._random = random
        self._num_until_next = self._draw()

    def among(self, num_segments: int) -> list[int]:
        """Which of the next segments are lost, as indices from 0."""
        lost = []
        while self._num_until_next < num_segments:
            lost.append(self._num_until_next)
            self._num_until_next += 1 + self._draw()
        self._num_until_next -= num_segments
        return lost

    def _draw(self) -> int:
        if self._probability <= 0:
            return _NEVER
        if self._probability >= 1:
            return 0
        uniform = 1.0 - self._random.random()  # in (0, 1]
        return min(_NEVER, int(math.log(uniform) / math.log1p(-self._probability)))
