"""The streams of a lane's sending end: each takes chunks, and sees them through.

A stream remembers its chunks until the receiver has confirmed them; over a new connection it goes
on with those that the receiver lacks, before it takes others. So its chunks always come in order
and exactly once.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress

from crosspipe_ray.engine.transports.streams import wire
from crosspipe_ray.engine.transports.streams.connection import Connection, Route
from crosspipe_ray.engine.transports.streams.credentials import Credentials
from crosspipe_ray.engine.transports.streams.door import HANDSHAKE_TIMEOUT_S
from crosspipe_ray.engine.transports.streams.lanes import Part, SendingLane
from crosspipe_ray.engine.transports.streams.wire import Ack, Chunk, Hello, WireError
from crosspipe_ray.errors import RunError

_log = logging.getLogger(__name__)

# Their acks fit into any socket's buffer: the receiver never has to wait for us to read them.
_MAX_UNCONFIRMED = 256
# Under one key AES-GCM is safe for 2^24.5 TLS records, 380 GiB; a new connection has a new key.
_MAX_BYTES_PER_KEY = 256 * 1024**3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


class _Gone(RunError):  # noqa: N818 - a rank that is gone is a fact, not a mistake
    """The receiver's door is closed."""


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
        self._stop = threading.Event()
        self._connection: Connection | None = None
        self._error: str | None = None
        self._num_confirmed = 0
        self._unconfirmed: deque[Part] = deque()
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
            self._credentials.client,
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


def _send(connection: Connection, number: int, part: Part) -> None:
    message, offset, size = part
    total = len(message.payload)
    chunk = Chunk(number, message.sequence, message.tag, total, offset, size)
    connection.send(chunk, message.payload[offset : offset + size])
