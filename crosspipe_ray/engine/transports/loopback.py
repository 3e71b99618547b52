"""Ranks that are threads of one process: for unit tests and runs in one process."""

from __future__ import annotations

import threading
from collections import deque
from itertools import permutations
from typing import NamedTuple

import torch

from crosspipe_ray.engine.transports.base import EventHandle, Handle, HandleBook, Transport
from crosspipe_ray.errors import RunError


class _Posted(NamedTuple):
    payload: torch.Tensor
    tag: int
    handle: EventHandle


class _Lane:
    """Posted messages of one directed pair that wait for their other half."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sends: deque[_Posted] = deque()
        self.receives: deque[_Posted] = deque()

    def match(self) -> None:
        """Delivers what both ends have posted; whoever posts second copies."""
        while self.sends and self.receives:
            send, receive = self.sends.popleft(), self.receives.popleft()
            error = None
            if (send.tag, send.payload.shape) == (receive.tag, receive.payload.shape):
                receive.payload.copy_(send.payload)
            else:
                error = RunError(
                    f"{receive.handle.name}, {receive.payload.numel()} bytes, met a "
                    f"{send.handle.name}, {send.payload.numel()} bytes"
                )
            receive.handle.finish(error)
            send.handle.finish(error)

    def fail(self, reason: str) -> None:
        """Ends what is still unmatched."""
        while self.sends or self.receives:
            handle = (self.sends or self.receives).popleft().handle
            handle.finish(RunError(f"{handle.name}: {reason}"))


class LoopbackHub:
    """What the transports of one process have in common."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self._lanes = {pair: _Lane() for pair in permutations(range(num_ranks), 2)}
        self._gone: set[int] = set()

    def transport(self, rank: int) -> LoopbackTransport:
        """The end of one rank; any thread may use it."""
        return LoopbackTransport(self, rank)

    def post_send(self, posted: _Posted, *, src: int, dst: int) -> None:
        """Hands over a message; an end that is gone fails it."""
        self._post(self._lanes[src, dst].sends, posted, src, dst)

    def post_receive(self, posted: _Posted, *, src: int, dst: int) -> None:
        """Asks for a message; an end that is gone fails it."""
        self._post(self._lanes[src, dst].receives, posted, src, dst)

    def _post(self, side: deque[_Posted], posted: _Posted, src: int, dst: int) -> None:
        lane = self._lanes[src, dst]
        with lane.lock:
            side.append(posted)
            lane.match()
            for rank in self._gone.intersection((src, dst)):
                lane.fail(f"rank {rank} is gone")

    def leave(self, rank: int) -> None:
        """Ends what others still expect from a rank."""
        self._gone.add(rank)
        for pair, lane in self._lanes.items():
            if rank in pair:
                with lane.lock:
                    lane.fail(f"rank {rank} is gone")


class LoopbackTransport(Transport):
    """One rank's end of a ``LoopbackHub``. It also notices tags and sizes that do not match."""

    def __init__(self, hub: LoopbackHub, rank: int) -> None:
        self.rank = rank
        self.num_ranks = hub.num_ranks
        self._hub = hub
        self._book = HandleBook()

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``."""
        payload = self.payload(tensor, peer=peer, tag=tag)
        handle = self._book.open("send", peer=peer, tag=tag)
        self._hub.post_send(_Posted(payload, tag, handle), src=self.rank, dst=peer)
        return handle

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``."""
        payload = self.payload(into, peer=peer, tag=tag)
        handle = self._book.open("receive", peer=peer, tag=tag)
        self._hub.post_receive(_Posted(payload, tag, handle), src=peer, dst=self.rank)
        return handle

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        self._book.abort(reason)
        self._hub.leave(self.rank)

    def close(self) -> None:
        """As ``Transport.close``."""
        self.abort(f"rank {self.rank} has closed its transport")
