"""The two ends of a lane: which messages are under way, and what is missing of them.

Whichever stream is free takes the next chunk of the sending end, so a slow one holds up nobody. At
the receiving end a chunk has a place once its receive is posted, and nobody keeps it until then.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from crosspipe_ray.engine.transports.base import EventHandle
from crosspipe_ray.engine.transports.streams.wire import Chunk, WireError
from crosspipe_ray.errors import RunError

# A message gives every stream several turns, so that a slow one can take fewer than the others.
_TURNS = 16
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 64 * 1024, 1024 * 1024


@dataclass(slots=True)
class _Message:
    handle: EventHandle
    payload: memoryview
    sequence: int
    tag: int
    chunk_bytes: int
    taken_bytes: int = 0
    num_unconfirmed: int = 0

    @property
    def is_taken(self) -> bool:
        return self.taken_bytes == len(self.payload)


class Part(NamedTuple):
    """A chunk of a message on its way out."""

    message: _Message
    offset: int
    size: int


class SendingLane:
    """Messages of one directed pair, on their way out.

    Args:
        num_streams: that share the messages.
    """

    def __init__(self, num_streams: int) -> None:
        self._num_streams = num_streams
        self._num_left = 0
        self._lock = threading.Lock()
        self._sequence = count()
        self._queue: deque[_Message] = deque()
        self._open: set[EventHandle] = set()
        self._idle: list[Callable[[], None]] = []
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """Why nothing goes out any more."""
        return self._error

    def post(self, handle: EventHandle, payload: memoryview, tag: int) -> None:
        """Queues a message; a lane that has failed fails it."""
        share = -(-len(payload) // (_TURNS * self._num_streams))
        chunk_bytes = min(max(share, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
        with self._lock:
            if self._error is None:
                message = _Message(handle, payload, next(self._sequence), tag, chunk_bytes)
                self._queue.append(message)
                self._open.add(handle)
                num_chunks = max(1, -(-len(payload) // chunk_bytes))
                waking, self._idle = self._idle[:num_chunks], self._idle[num_chunks:]
            else:
                handle.finish(RunError(f"{handle.name}: {self._error}"))
                waking = []
        for wake in waking:
            wake()

    def take(self, wake: Callable[[], None]) -> Part | None:
        """The next chunk; without one, ``wake`` is called once there is."""
        with self._lock:
            if not self._queue:
                if wake not in self._idle:
                    self._idle.append(wake)
                return None
            message = self._queue[0]
            offset = message.taken_bytes
            size = min(message.chunk_bytes, len(message.payload) - offset)
            message.taken_bytes += size
            message.num_unconfirmed += 1
            if message.is_taken:
                self._queue.popleft()
            return Part(message, offset, size)

    def withdraw(self, wake: Callable[[], None]) -> None:
        """This stream takes no chunks for a while; another one that is idle has to."""
        with self._lock:
            waking = [other for other in self._idle if other != wake]
            self._idle = []
        for other in waking:  # those that find nothing to do come back
            other()

    def confirm(self, part: Part) -> None:
        """The receiver has this chunk; with the last one the message is done."""
        with self._lock:
            message = part.message
            message.num_unconfirmed -= 1
            is_done = message.is_taken and message.num_unconfirmed == 0
            if is_done:
                self._open.discard(message.handle)
        if is_done:
            message.handle.finish()

    def leave(self, reason: str) -> None:
        """One stream gives up; the last one ends the lane.

        The others may still have to read the acks that a rank sent before it left.
        """
        with self._lock:
            self._num_left += 1
            is_last = self._num_left == self._num_streams
        if is_last:
            self.fail(reason)

    def fail(self, reason: str) -> None:
        """Ends this lane: its messages, and those to come."""
        with self._lock:
            self._error = self._error or reason
            handles, self._open = self._open, set()
            self._queue.clear()
            waking, self._idle = self._idle, []
        for handle in handles:
            handle.finish(RunError(f"{handle.name}: {self._error}"))
        for wake in waking:
            wake()


@dataclass(slots=True)
class _Receive:
    handle: EventHandle
    into: memoryview
    tag: int
    num_missing: int
    num_unconfirmed: int
    is_complete: bool = False


class ReceivingLane:
    """Messages of one directed pair, on their way in; ``changed`` guards it and its streams."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.error: str | None = None
        self._num_posted = 0
        self._receives: dict[int, _Receive] = {}

    def post(self, handle: EventHandle, into: memoryview, tag: int) -> None:
        """Expects a message; a lane that has failed fails it."""
        with self.changed:
            if self.error is not None:
                handle.finish(RunError(f"{handle.name}: {self.error}"))
                return
            self._receives[self._num_posted] = _Receive(handle, into, tag, len(into), len(into))
            self._num_posted += 1
            self.changed.notify_all()

    def place(self, chunk: Chunk) -> memoryview | None:
        """Where a chunk belongs; None while its receive is not posted.

        Raises:
            WireError: its message is another one than the receive expects.
        """
        receive = self._receives.get(chunk.sequence)
        if receive is None:
            if chunk.sequence < self._num_posted:
                raise WireError(f"message {chunk.sequence} has been received before")
            return None
        if (chunk.tag, chunk.total_bytes) != (receive.tag, len(receive.into)):
            self.fail(
                f"{receive.handle.name}, {len(receive.into)} bytes, met a send of tag {chunk.tag}, "
                f"{chunk.total_bytes} bytes"
            )
            raise WireError("another message than expected")
        return receive.into[chunk.offset : chunk.offset + chunk.size]

    def land(self, chunk: Chunk) -> None:
        """A chunk is in its place; once all of a message are, a failure leaves it alone."""
        with self.changed:
            receive = self._receives.get(chunk.sequence)
            if receive is not None:  # else it has failed in the meantime
                receive.num_missing -= chunk.size
                receive.is_complete = receive.num_missing == 0

    def confirm(self, chunk: Chunk) -> None:
        """The sender has been told of a chunk; with the last one the message is done.

        Told first, since a rank may leave as soon as its last message is done. That is no reason
        for it to fail: the sender, too, may leave once it has been told.
        """
        with self.changed:
            receive = self._receives.get(chunk.sequence)
            if receive is None:  # failed in the meantime
                return
            receive.num_unconfirmed -= chunk.size
            if receive.num_unconfirmed == 0:
                del self._receives[chunk.sequence]
                receive.handle.finish()

    def fail(self, reason: str) -> None:
        """Ends this lane: its receives, and those to come."""
        with self.changed:
            self.error = self.error or reason
            failed = [each for each in self._receives.values() if not each.is_complete]
            self._receives = {
                sequence: each for sequence, each in self._receives.items() if each.is_complete
            }
            self.changed.notify_all()
        for receive in failed:
            receive.handle.finish(RunError(f"{receive.handle.name}: {self.error}"))
