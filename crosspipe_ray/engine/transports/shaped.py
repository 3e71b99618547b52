"""Latency, bandwidth and jitter of a WAN, injected around any other transport.

An emulated link does what the simulator says: a message occupies its channel for bytes/bandwidth,
one at a time, first come first served, and arrives a latency later. The real transfer starts at
once and overlaps the injected delay: the sender reserves a window of the channel and sends it ahead
of the payload; the receiver sleeps what is then left of it. Both read one clock: one host.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports.base import (
    Handle,
    Transport,
    TransportTimeout,
    Window,
    describe,
)
from crosspipe_ray.errors import AbortedError


def _takes_no_time(num_bytes: int) -> int:  # noqa: ARG001 - a link without a bandwidth
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """What one directed pair of ranks has between them.

    Args:
        channel: links of the same channel are busy with one message at a time.
        latency_ns: from the end of the occupation to the arrival.
        occupancy_ns: how long a message of so many bytes keeps the channel busy.
        jitter_ns: each message arrives up to this much later; order is kept.

    Raises:
        ValueError: a negative time.
    """

    channel: str
    latency_ns: int = 0
    occupancy_ns: Callable[[int], int] = _takes_no_time
    jitter_ns: int = 0

    def __post_init__(self) -> None:
        if min(self.latency_ns, self.jitter_ns) < 0:
            raise ValueError(f"{self}: times must not be negative")


class ChannelClock:
    """When a channel is free again, for all ranks that send through it.

    Args:
        path: a file that these ranks open, from several threads or processes of one host; it holds
            the time as 8 bytes. None: the channel has a single rank.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._free_ns = 0
        self._lock = threading.Lock()
        self._path = path
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def reserve(self, occupancy_ns: int, *, now_ns: int) -> tuple[int, int]:
        """Takes the first free time from now on; returns its start and end."""
        with self._lock:
            if self._file is None:
                start_ns = max(now_ns, self._free_ns)
                self._free_ns = start_ns + occupancy_ns
                return start_ns, self._free_ns
            return self._reserve_in_file(self._file, occupancy_ns, now_ns)

    def _reserve_in_file(self, file: int, occupancy_ns: int, now_ns: int) -> tuple[int, int]:
        # Held for two system calls, and the kernel takes it back from a process that dies.
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            start_ns = max(now_ns, int.from_bytes(os.pread(file, 8, 0), "little"))
            os.pwrite(file, (start_ns + occupancy_ns).to_bytes(8, "little"), 0)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        return start_ns, start_ns + occupancy_ns

    def close(self) -> None:
        """Lets go of the file, and removes it; ranks that have it open go on sharing it."""
        if self._file is not None and self._path is not None:
            os.close(self._file)
            self._file = None
            self._path.unlink(missing_ok=True)


class Link:
    """The sender's end of one emulated link.

    Args:
        shape: what to emulate.
        channel: the clock of ``shape.channel``.
        jitter: draws the jitter, one number per message.
    """

    def __init__(self, shape: LinkShape, channel: ChannelClock, jitter: random.Random) -> None:
        self._shape = shape
        self._channel = channel
        self._jitter = jitter
        self._last_arrive_ns = 0

    def reserve(self, num_bytes: int, *, now_ns: int) -> Window:
        """Books the next message on the channel; it arrives after all earlier ones of this link."""
        occupancy_ns = self._shape.occupancy_ns(num_bytes)
        start_ns, end_ns = self._channel.reserve(occupancy_ns, now_ns=now_ns)
        delay_ns = self._shape.latency_ns + self._jitter.randint(0, self._shape.jitter_ns)
        self._last_arrive_ns = max(self._last_arrive_ns, end_ns + delay_ns)
        return Window(start_ns, end_ns, self._last_arrive_ns)


class ShapedTransport(Transport):
    """Injects links into another transport.

    Args:
        inner: carries the messages; closed and aborted together with this one.
        links: by (src, dst), the same on all ranks. Pairs that are not in it pass straight through.
        seed: of the jitter; each link draws its own numbers from it.
        clock_dir: an existing folder for the clocks of channels that several ranks send through,
            the same for all of them, and for no other run. None: no channel has two senders.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        links: Mapping[tuple[int, int], LinkShape],
        seed: int = 0,
        clock_dir: Path | None = None,
    ) -> None:
        self.rank = inner.rank
        self.num_ranks = inner.num_ranks
        self._inner = inner
        self._stop = _Stop()
        self._sources = {src for src, dst in links if dst == self.rank}
        outgoing = {dst: shape for (src, dst), shape in links.items() if src == self.rank}
        self._channels = {
            name: ChannelClock(clock_dir and clock_dir / quote(name, safe=""))
            for name in {shape.channel for shape in outgoing.values()}
        }
        self._links = {
            dst: Link(shape, self._channels[shape.channel], _jitter(seed, self.rank, dst))
            for dst, shape in outgoing.items()
        }

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``; the handle is done when the real transfer is."""
        if peer not in self._links:
            return self._inner.isend(tensor, peer=peer, tag=tag)
        payload = self.payload(tensor, peer=peer, tag=tag)
        window = self._links[peer].reserve(payload.numel(), now_ns=clock.now_ns())
        header = torch.tensor(window, dtype=torch.int64, device="cpu")
        self._inner.isend(header, peer=peer, tag=tag)
        return _ShapedSend(self._inner.isend(payload, peer=peer, tag=tag), window)

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``; the handle is done when both links have delivered."""
        if peer not in self._sources:
            return self._inner.irecv(into, peer=peer, tag=tag)
        payload = self.payload(into, peer=peer, tag=tag)
        header = torch.empty(len(Window._fields), dtype=torch.int64, device="cpu")
        return _ShapedReceive(
            name=describe("receive", peer=peer, tag=tag),
            header=self._inner.irecv(header, peer=peer, tag=tag),
            payload=self._inner.irecv(payload, peer=peer, tag=tag),
            header_tensor=header,
            stop=self._stop,
        )

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        self._stop.set(reason)
        self._inner.abort(reason)

    def close(self) -> None:
        """As ``Transport.close``."""
        self._stop.set(f"rank {self.rank} has closed its transport")
        self._inner.close()
        for channel in self._channels.values():
            channel.close()


def _jitter(seed: int, src: int, dst: int) -> random.Random:
    return random.Random(f"{seed} {src} {dst}")  # a text seeds alike in every process


class _Stop:
    """Ends the sleeps of a transport."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.error = AbortedError("")

    def set(self, reason: str) -> None:
        if not self.event.is_set():
            self.error = AbortedError(reason)
            self.event.set()


class _ShapedSend(Handle):
    __slots__ = ("_payload", "_window")

    def __init__(self, payload: Handle, window: Window) -> None:
        self._payload = payload
        self._window = window

    @property
    def done_ns(self) -> int | None:
        return self._payload.done_ns

    @property
    def window(self) -> Window | None:
        return self._window

    def wait(self, *, timeout_s: float) -> None:
        self._payload.wait(timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShapedReceive(Handle):
    name: str
    header: Handle
    payload: Handle
    header_tensor: torch.Tensor
    stop: _Stop

    @property
    def window(self) -> Window | None:
        return None if self.header.done_ns is None else Window(*self.header_tensor.tolist())

    @property
    def done_ns(self) -> int | None:
        window, payload_ns = self.window, self.payload.done_ns
        if window is None or payload_ns is None or clock.now_ns() < window.arrive_ns:
            return None
        return max(payload_ns, window.arrive_ns)

    def wait(self, *, timeout_s: float) -> None:
        deadline_ns = clock.now_ns() + round(timeout_s * 1e9)
        # The header is first on its way: it has mostly arrived by now, and costs no second wake-up.
        self.payload.wait(timeout_s=timeout_s)
        self.header.wait(timeout_s=max(0.0, (deadline_ns - clock.now_ns()) * 1e-9))
        arrive_ns = Window(*self.header_tensor.tolist()).arrive_ns
        if not clock.sleep_until(min(arrive_ns, deadline_ns), interrupt=self.stop.event):
            raise self.stop.error
        if arrive_ns > deadline_ns:
            raise TransportTimeout(f"{self.name}: nothing after {timeout_s:g} s")
