"""Tensors as Ray objects: no open ports, no groups; good on a LAN and for small messages.

A message is an argument of a call to the receiver's mailbox. Ray inlines arguments below 100 KB;
larger ones go through both object stores.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from crosspipe_ray.engine.transports import EventHandle, Handle, HandleBook, Transport
from crosspipe_ray.errors import RunError

Payload = NDArray[np.uint8]
_FAREWELL = -1  # a tag that no message has


class Peer(Protocol):
    """How a rank reaches another one's mailbox."""

    def __call__(self, src: int, sequence: int, tag: int, payload: Payload) -> object:
        """Delivers a message; does not wait for it."""


class Mailbox:
    """Messages that have come, and receives that wait for one, in the order of each lane."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: dict[int, dict[int, tuple[int, Payload]]] = defaultdict(dict)
        self._posted: dict[int, deque[tuple[EventHandle, int, torch.Tensor]]] = defaultdict(deque)
        self._next: dict[int, int] = defaultdict(int)

    def deliver(self, src: int, sequence: int, tag: int, payload: Payload) -> None:
        """Takes a message; calls may come in any order, ``sequence`` counts those of a lane."""
        with self._lock:
            self._early[src][sequence] = tag, payload
            self._match(src)

    def post(self, src: int, handle: EventHandle, tag: int, into: torch.Tensor) -> None:
        """Lets the next message of a lane go into a tensor of bytes."""
        with self._lock:
            self._posted[src].append((handle, tag, into))
            self._match(src)

    def _match(self, src: int) -> None:
        early, posted = self._early[src], self._posted[src]
        while posted and self._next[src] in early:
            handle, tag, into = posted.popleft()
            message = early[self._next[src]]
            if message[0] == _FAREWELL:
                handle.finish(RunError(f"{handle.name}: rank {src} is gone"))
                continue  # the farewell stays: nothing comes after it
            handle.finish(_fill(into, tag, message))
            del early[self._next[src]]
            self._next[src] += 1


class ObjectStoreTransport(Transport):
    """Sends by calling the peers' mailboxes.

    Args:
        rank: of this end.
        mailbox: this rank's; its actor delivers into it.
        peers: by rank, the call that delivers.
    """

    def __init__(self, rank: int, *, mailbox: Mailbox, peers: Mapping[int, Peer]) -> None:
        self.rank = rank
        self.num_ranks = len(peers) + 1
        self._mailbox = mailbox
        self._peers = peers
        self._sent: dict[int, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._book = HandleBook()

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``; done at once, since Ray copies the tensor in the call."""
        payload = self.payload(tensor, peer=peer, tag=tag).cpu().numpy()
        handle = self._book.open("send", peer=peer, tag=tag)
        self._peers[peer](self.rank, self._sent[peer], tag, payload)
        self._sent[peer] += 1
        handle.finish()
        return handle

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``."""
        payload = self.payload(into, peer=peer, tag=tag)
        handle = self._book.open("receive", peer=peer, tag=tag)
        self._mailbox.post(peer, handle, tag, payload)
        return handle

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        self._book.abort(reason)
        with self._lock:
            peers, self._peers = self._peers, {}
        for peer, deliver in peers.items():
            deliver(self.rank, self._sent[peer], _FAREWELL, np.empty(0, dtype=np.uint8))

    def close(self) -> None:
        """As ``Transport.close``; there is nothing to leave behind."""
        self.abort(f"rank {self.rank} has closed its transport")


def _fill(into: torch.Tensor, tag: int, message: tuple[int, Payload]) -> RunError | None:
    """Copies a message into the receiver's tensor; or says why it is not the one expected."""
    sent_tag, payload = message
    if (sent_tag, payload.nbytes) != (tag, into.nbytes):
        return RunError(
            f"a message of tag {sent_tag} and {payload.nbytes} bytes came where tag {tag} and "
            f"{into.nbytes} bytes were expected"
        )
    # Ray's arrays are read-only, which torch cannot express: numpy copies on the host.
    if into.device.type == "cpu":
        np.copyto(into.numpy(), payload)
    else:
        into.copy_(torch.from_numpy(payload.copy()))
    return None
