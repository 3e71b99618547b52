"""The sending end of a lane: messages in a queue, streams that take chunks from it.

Whichever stream is free takes the next chunk, so a slow one holds up nobody. A stream remembers
its chunks until the receiver has confirmed them; over a new connection it goes on with those that
the receiver lacks, before it takes others. So its chunks always come in order and exactly once.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from crosspipe_ray.engine.transports.base import EventHandle
from crosspipe_ray.engine.transports.streams import wire
from crosspipe_ray.engine.transports.streams.connection import Connection, Route
from crosspipe_ray.engine.transports.streams.credentials import Credentials
from crosspipe_ray.engine.transports.streams.door import HANDSHAKE_TIMEOUT_S
from crosspipe_ray.engine.transports.streams.wire import Ack, Chunk, Hello, WireError
from crosspipe_ray.errors import RunError

_log = logging.getLogger(__name__)

# A message gives every stream several turns, so that a slow one can take fewer than the others.
_TURNS = 16
_MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 64 * 1024, 1024 * 1024
# Their acks fit into any socket's buffer: the receiver never has to wait for us to read them.
_MAX_UNCONFIRMED = 256
# Under one key AES-GCM is safe for 2^24.5 TLS records, 380 GiB; a new connection has a new key.
_MAX_BYTES_PER_KEY = 256 * 1024**3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


class _Gone(RunError):  # noqa: N818 - a rank that is gone is a fact, not a mistake
    """The receiver's door is closed."""


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


class _Part(NamedTuple):
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

    def take(self, wake: Callable[[], None]) -> _Part | None:
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
            return _Part(message, offset, size)

    def withdraw(self, wake: Callable[[], None]) -> None:
        """This stream takes no chunks for a while; another one that is idle has to."""
        with self._lock:
            waking = [other for other in self._idle if other != wake]
            self._idle = []
        for other in waking:  # those that find nothing to do come back
            other()

    def confirm(self, part: _Part) -> None:
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


class SendingStream:
    """One of the connections of a lane, reopened when it is lost; a thread of its own.

    Args:
        lane: to take chunks from.
        route: to the receiver.
        credentials: of this rank.
    """

    def __init__(self, lane: SendingLane, route: Route, credentials: Credentials) -> None:
        self.route = route
        self.is_settled = threading.Event()
        self.was_connected = False
        self._lane = lane
        self._credentials = credentials
        self._context = credentials.client_context()
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._error: str | None = None
        self._num_confirmed = 0
        self._unconfirmed: deque[_Part] = deque()
        self._bell, self._clapper = socket.socketpair()
        self._bell.setblocking(False)
        self._clapper.setblocking(False)
        self._thread = threading.Thread(
            target=self._run, name=f"transport {route.name}", daemon=True
        )

    def start(self) -> None:
        """Begins to connect; ``is_settled`` is set once that has worked or failed for good."""
        self._thread.start()

    @property
    def error(self) -> str | None:
        """Why it or its lane has failed; None while it has not."""
        return self._error or self._lane.error

    def stop(self) -> None:
        """Ends the thread soon, whatever it is doing; from any thread."""
        self._stop.set()
        self._wake()
        if (connection := self._connection) is not None:
            connection.cut()

    def join(self, *, timeout_s: float) -> None:
        """After ``stop``: leaves no thread and no socket behind."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RunError(f"{self._thread.name}: its thread did not end within {timeout_s:g} s")
        self._bell.close()
        self._clapper.close()

    @property
    def _is_over(self) -> bool:
        return self._stop.is_set() or self._lane.error is not None

    def _wake(self) -> None:
        with suppress(OSError):  # full: it rings anyway; closed: there is nobody to wake
            self._clapper.send(b"!")

    def _run(self) -> None:
        loss: Exception | None = None
        while not self._is_over:
            try:
                connection = self._reach()
            except RunError as error:
                self._error = str(error)
                end_lane = self._lane.leave if isinstance(error, _Gone) else self._lane.fail
                end_lane(self._error)
                break
            try:
                self._resume(connection, loss)
                self.was_connected = True
                self.is_settled.set()
                self._pump(connection)
                loss = None
            except (OSError, WireError) as error:
                loss = error
            finally:
                connection.close()
                self._lane.withdraw(self._wake)
        self.is_settled.set()

    def _reach(self) -> Connection:
        """Connects, again and again while there is hope."""
        rank = f"rank {self.route.dst}"
        hope_s = self.route.resume_s if self.was_connected else self.route.connect_s
        pause_s = _FIRST_PAUSE_S
        deadline = time.monotonic() + hope_s
        while True:
            try:
                return self._connect()
            except ConnectionRefusedError:
                raise _Gone(f"{rank} is gone") from None
            except ssl.SSLCertVerificationError as error:
                _log.warning("%s: refused %s:%d: %s", self.route.name, *self.route.address, error)
                raise RunError(f"{rank} has no certificate that counts: {error}") from None
            except (OSError, WireError) as error:
                if time.monotonic() > deadline:
                    raise RunError(f"{rank} is gone: {error}") from None
            if self._stop.wait(pause_s):
                raise RunError("stopped")
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _connect(self) -> Connection:
        connection = Connection.dial(
            self.route.address,
            self._context,
            name=self._credentials.name,
            timeout_s=HANDSHAKE_TIMEOUT_S,
        )
        self._connection = connection
        try:
            if self._stop.is_set():
                raise ConnectionAbortedError("stopped")
            hello = Hello(*self.route.place, wire.nonce())
            self._confirm(connection.introduce(hello, self._credentials.token))
            connection.settle()
        except BaseException:
            connection.close()
            raise
        return connection

    def _resume(self, connection: Connection, loss: Exception | None) -> None:
        """Sends again what has not arrived over the connection before."""
        if loss is not None:
            at = self._num_confirmed
            _log.warning("%s: lost (%s), reopened, goes on at chunk %d", self.route.name, loss, at)
        for number, part in enumerate(tuple(self._unconfirmed), self._num_confirmed):
            _send(connection, number, part)

    def _pump(self, connection: Connection) -> None:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while not self._is_over and connection.num_sent_bytes < _MAX_BYTES_PER_KEY:
            if not self._send_next(connection):
                self._await_news(poll)
            while connection.has_more or poll.poll(0):
                self._confirm(connection.receive(Ack).num_chunks)

    def _send_next(self, connection: Connection) -> bool:
        """A function of its own, so that an idle thread keeps no tensor alive."""
        if len(self._unconfirmed) == _MAX_UNCONFIRMED:
            return False
        part = self._lane.take(self._wake)
        if part is None:
            return False
        number = self._num_confirmed + len(self._unconfirmed)
        self._unconfirmed.append(part)
        _send(connection, number, part)
        return True

    def _await_news(self, poll: select.poll) -> None:
        """Until an ack comes, or somebody wakes this thread."""
        poll.register(self._bell, select.POLLIN)
        poll.poll()  # stop() ends this wait
        poll.unregister(self._bell)
        with suppress(BlockingIOError):
            self._bell.recv(_MAX_UNCONFIRMED)

    def _confirm(self, num_chunks: int) -> None:
        """All chunks up to here have arrived."""
        if not 0 <= num_chunks - self._num_confirmed <= len(self._unconfirmed):
            raise WireError(f"{num_chunks} chunks confirmed: not what was sent")
        while self._num_confirmed < num_chunks:
            self._num_confirmed += 1
            self._lane.confirm(self._unconfirmed.popleft())


def _send(connection: Connection, number: int, part: _Part) -> None:
    message, offset, size = part
    total = len(message.payload)
    chunk = Chunk(number, message.sequence, message.tag, total, offset, size)
    connection.send(chunk, message.payload[offset : offset + size])
