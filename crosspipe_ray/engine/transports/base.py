"""What every transport promises, and the parts that they share.

``tests/contract/transport_contract.py`` checks these promises on each of them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.errors import AbortedError, RunError


class TransportTimeout(RunError):  # noqa: N818 - the field's word, as in httpx and requests
    """A message did not come, or was not taken over, in time."""


class Window(NamedTuple):
    """``clock.now_ns()`` when an emulated link is busy with a message, and when it delivers it."""

    start_ns: int
    end_ns: int
    arrive_ns: int


class Handle(ABC):
    """One message under way."""

    __slots__ = ()

    @abstractmethod
    def wait(self, *, timeout_s: float) -> None:
        """Blocks until a receive has its message, or a send no longer needs its tensor.

        Raises:
            TransportTimeout: not within ``timeout_s`` seconds; names peer and tag.
            AbortedError: the transport was told to stop.
            RunError: the peer is gone.
        """

    @property
    @abstractmethod
    def done_ns(self) -> int | None:
        """``clock.now_ns()`` when there was nothing left to wait for; None before, or failed."""

    @property
    def window(self) -> Window | None:
        """What an emulated link did to the message; None on a real one, or while not known."""
        return None


class Transport(ABC):
    """Moves tensors from rank to rank.

    Each directed pair of ranks is a lane. The messages of a lane match in the order of posting, so
    both ends post the same tags and sizes in the same order, each from one thread at a time; a
    receive may be posted before or after its send. Lanes are independent: a stalled one never
    blocks another. Tensors are contiguous, of any dtype and size, empty ones included. After a
    timeout nothing is retried: the caller aborts, closes, and builds a new transport.

    Attributes:
        rank: of this end.
        num_ranks: of the whole run.
    """

    rank: int
    num_ranks: int

    @abstractmethod
    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """Starts to send; never blocks.

        Args:
            tensor: contiguous; kept alive, and not to be changed until the handle is done.
            peer: the rank that receives.
            tag: any number >= 0; may be reused.

        Raises:
            ValueError: the message cannot be sent as described.
            AbortedError: the transport was told to stop.
        """

    @abstractmethod
    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """Starts to receive into a tensor of the sent size; otherwise like ``isend``."""

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Ends every wait with an AbortedError, and the peers' waits for this rank with a RunError.

        From any thread, any number of times; nothing can be posted afterwards.
        """

    @abstractmethod
    def close(self) -> None:
        """Leaves no thread, socket, process group or file behind. Any number of times."""

    def payload(self, tensor: torch.Tensor, *, peer: int, tag: int) -> torch.Tensor:
        """Checks a message and returns the tensor's own memory as bytes, shape [num_bytes].

        Raises:
            ValueError: the peer is no other rank, the tag negative or the tensor not contiguous.
        """
        if peer == self.rank or not 0 <= peer < self.num_ranks:
            raise ValueError(f"peer {peer}: no other rank of rank {self.rank} of {self.num_ranks}")
        if tag < 0:
            raise ValueError(f"tag {tag}: must not be negative")
        if not tensor.is_contiguous():
            raise ValueError(f"tag {tag}, peer {peer}: the tensor must be contiguous")
        return tensor.detach().view(-1).view(torch.uint8)


def describe(verb: str, *, peer: int, tag: int) -> str:
    """The name of a message in errors, as in ``receive of tag 7 from rank 3``."""
    return f"{verb} of tag {tag} {'to' if verb == 'send' else 'from'} rank {peer}"


class EventHandle(Handle):
    """A handle that somebody else finishes, from any thread; the first to do so decides.

    Args:
        name: what to call the message in errors.
        book: handles under way; this one is in it until it is done.
    """

    __slots__ = ("_book", "_done", "_done_ns", "_error", "_first", "name")

    def __init__(self, name: str, book: set[EventHandle]) -> None:
        self.name = name
        self._book = book
        self._done = threading.Event()
        self._first = threading.Lock()
        self._error: RunError | None = None
        self._done_ns: int | None = None

    @property
    def done_ns(self) -> int | None:
        """As ``Handle.done_ns``."""
        return self._done_ns

    def finish(self, error: RunError | None = None) -> None:
        """Wakes whoever waits; with an error, their wait raises it."""
        if not self._first.acquire(blocking=False):
            return
        self._error = error
        self._done_ns = clock.now_ns() if error is None else None
        self._book.discard(self)
        self._done.set()

    def wait(self, *, timeout_s: float) -> None:
        """As ``Handle.wait``."""
        if not self._done.wait(timeout_s):
            raise TransportTimeout(f"{self.name}: nothing after {timeout_s:g} s")
        if self._error is not None:
            raise self._error


class HandleBook:
    """The handles of a transport that are under way, so that an abort finds every one of them."""

    def __init__(self) -> None:
        self._open: set[EventHandle] = set()
        self._abort: AbortedError | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._open

    def open(self, verb: str, *, peer: int, tag: int) -> EventHandle:
        """A new handle; ``verb`` is send or receive.

        Raises:
            AbortedError: the transport was told to stop.
        """
        handle = EventHandle(describe(verb, peer=peer, tag=tag), self._open)
        self._open.add(handle)
        # Looked at last: an abort at this very moment either sees the handle or is seen here.
        if self._abort is not None:
            handle.finish(self._abort)
            raise self._abort
        return handle

    def abort(self, reason: str) -> None:
        """Finishes all handles, and those to come, with an AbortedError."""
        self._abort = self._abort or AbortedError(reason)
        for handle in self._open.copy():
            handle.finish(self._abort)
