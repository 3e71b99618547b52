"""One direction of an emulated link: losses, partition, delay, and what has been counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import NamedTuple

from crosspipe_ray.testing.wan.delay import DelayQueue, Losses, Shape
from crosspipe_ray.testing.wan.packets import VNET_BYTES, num_segments, without


class Delivery(NamedTuple):
    """A packet and the descriptor of the device that it goes to."""

    packet: bytes
    port: int


@dataclass(slots=True)
class Counters:
    """What a link has seen since it is up.

    Attributes:
        num_segments: that were to be sent.
        num_lost: segments lost by chance.
        num_queue_drops: packets that found the queue full.
        num_cut: packets that were to be sent, or on their way, while the link was cut.
        num_bytes: delivered.
    """

    num_segments: int = 0
    num_lost: int = 0
    num_queue_drops: int = 0
    num_cut: int = 0
    num_bytes: int = 0


class EmulatedLink:
    """All packets from the hosts of one region to those of another.

    Args:
        shape: of this direction.
        seed: of losses and jitter.
    """

    def __init__(self, shape: Shape, *, seed: str) -> None:
        self._random = Random(seed)
        self._queue: DelayQueue[Delivery] = DelayQueue(shape, self._random)
        self._losses = Losses(shape.loss, self._random)
        self.counters = Counters()
        self.is_cut = False

    def reshape(self, shape: Shape) -> None:
        """Changes the link; packets on their way arrive as they would have."""
        self._queue.shape = shape
        self._losses = Losses(shape.loss, self._random)

    def cut(self) -> None:
        """Loses what is on its way and all that comes until ``heal``."""
        self.is_cut = True
        self.counters.num_cut += self._queue.clear()

    def heal(self) -> None:
        """Lets packets through again."""
        self.is_cut = False

    def push(self, delivery: Delivery, *, now_ns: int) -> None:
        """Sends a packet."""
        if self.is_cut:
            self.counters.num_cut += 1
            return
        packet, port = delivery
        segments = num_segments(packet)
        lost = self._losses.among(segments)
        self.counters.num_segments += segments
        self.counters.num_lost += len(lost)
        for part in without(packet, lost) if lost else (packet,):
            num_bytes = len(part) - VNET_BYTES
            if not self._queue.push(Delivery(part, port), num_bytes=num_bytes, now_ns=now_ns):
                self.counters.num_queue_drops += 1

    @property
    def next_arrival_ns(self) -> int:
        """When the next packet arrives."""
        return self._queue.next_arrival_ns

    def arrived(self, now_ns: int) -> Iterator[Delivery]:
        """Takes out what has arrived by now."""
        for delivery in self._queue.arrived(now_ns):
            self.counters.num_bytes += len(delivery.packet) - VNET_BYTES
            yield delivery

    def report(self) -> dict[str, int | bool]:
        """Counters, and whether the link is cut."""
        return {**asdict(self.counters), "is_cut": self.is_cut}
