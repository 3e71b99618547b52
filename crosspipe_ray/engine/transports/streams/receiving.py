"""The streams of a lane's receiving end: each fills the tensors of posted receives.

Nothing is kept that nobody has asked for: a chunk is read from its socket once its receive is
posted, straight into the tensor. Until then it stays with the kernel, and TCP slows the sender.
"""

from __future__ import annotations

import logging
import threading
import time

from crosspipe_ray.engine.transports.streams.connection import Connection, Route
from crosspipe_ray.engine.transports.streams.door import is_closed
from crosspipe_ray.engine.transports.streams.lanes import ReceivingLane
from crosspipe_ray.engine.transports.streams.wire import Ack, Chunk, Welcome, WireError
from crosspipe_ray.errors import RunError

_log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 0.25
_PROBE_TIMEOUT_S = 1.0


class ReceivingStream:
    """One of the connections of a lane; a thread that serves one after another.

    Args:
        lane: whose tensors to fill.
        route: to the sender.
    """

    def __init__(self, lane: ReceivingLane, route: Route) -> None:
        self.route = route
        self.is_settled = threading.Event()
        self.was_connected = False
        self._lane = lane
        self._is_stopped = False
        self._next: Connection | None = None
        self._current: Connection | None = None
        self._welcomed: Connection | None = None
        self._num_welcomed = 0
        self._num_chunks = 0
        self._thread = threading.Thread(
            target=self._run, name=f"transport {route.name}", daemon=True
        )

    def start(self) -> None:
        """Begins to wait; ``is_settled`` is set once a connection has come or none will."""
        self._thread.start()

    def adopt(self, connection: Connection) -> None:
        """Goes on over a new connection; the one before is of no use any more.

        Raises:
            ConnectionAbortedError: there is nothing to go on with.
        """
        with self._lane.changed:
            if self._is_over:
                raise ConnectionAbortedError(f"{self.route.name} is over")
            unused, self._next = self._next, connection
            if self._current is not None:
                self._current.cut()
            self._lane.changed.notify_all()
        if unused is not None:
            unused.close()

    @property
    def error(self) -> str | None:
        """Why its lane has failed; None while it has not."""
        return self._lane.error

    def see_off(self) -> None:
        """Before ``stop``: stays until the sender knows what has arrived.

        Acks may be lost with their connection; the welcome over the next one says the same.
        """
        with self._lane.changed:
            self._lane.changed.wait_for(
                lambda: self._is_over or self._sender_knows, timeout=self.route.resume_s
            )

    @property
    def _sender_knows(self) -> bool:
        if self._num_welcomed == self._num_chunks:
            return True
        return self._welcomed is not None and not self._welcomed.is_lost

    def stop(self) -> None:
        """Ends the thread soon, whatever it is doing; from any thread."""
        with self._lane.changed:
            self._is_stopped = True
            if self._current is not None:
                self._current.cut()
            self._lane.changed.notify_all()

    def join(self, *, timeout_s: float) -> None:
        """After ``stop``: leaves no thread and no socket behind."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RunError(f"{self._thread.name}: its thread did not end within {timeout_s:g} s")
        if self._next is not None:
            self._next.close()

    @property
    def _is_over(self) -> bool:
        return self._is_stopped or self._lane.error is not None

    def _run(self) -> None:
        while (connection := self._await_connection()) is not None:
            self._serve(connection)
        self.is_settled.set()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.send(Welcome(self._num_chunks))
            connection.settle()
            with self._lane.changed:
                self._welcomed, self._num_welcomed = connection, self._num_chunks
                self._lane.changed.notify_all()
            self.was_connected = True
            self.is_settled.set()
            while self._take_chunk(connection):
                pass
        except WireError as error:
            _log.warning("%s: refused what came: %s", self.route.name, error)
        except OSError as error:
            _log.debug("%s: lost: %s", self.route.name, error)
        finally:
            connection.close()

    def _await_connection(self) -> Connection | None:
        """The next connection; None when none will come, and the lane has failed or is stopped."""
        hope_s = self.route.resume_s if self.was_connected else self.route.connect_s
        deadline = time.monotonic() + hope_s
        pause_s = 0.0 if self.was_connected else hope_s
        while True:
            with self._lane.changed:
                self._current = None
                self._lane.changed.wait_for(
                    lambda: self._is_over or self._next is not None, timeout=pause_s
                )
                if self._is_over:
                    return None
                if self._next is not None:
                    self._current, self._next = self._next, None
                    return self._current
            gone = f"rank {self.route.src} is gone"
            if is_closed(self.route.address, timeout_s=_PROBE_TIMEOUT_S):
                self._lane.fail(gone)
            elif time.monotonic() > deadline:
                self._lane.fail(f"{gone}: no connection for {hope_s:g} s")
            pause_s = _PROBE_INTERVAL_S

    def _take_chunk(self, connection: Connection) -> bool:
        """A function of its own, so that an idle thread keeps no tensor alive."""
        chunk = connection.receive(Chunk)
        if chunk.number != self._num_chunks:
            raise WireError(f"chunk {chunk.number} in place of {self._num_chunks}")
        into = self._await_receive(chunk)
        if into is None:
            return False
        connection.receive_into(into)
        self._num_chunks += 1
        self._lane.land(chunk)
        try:
            connection.send(Ack(self._num_chunks))
        finally:
            self._lane.confirm(chunk)
        return True

    def _await_receive(self, chunk: Chunk) -> memoryview | None:
        """Where the chunk belongs, once a receive is posted; None if this connection is over."""
        into: memoryview | None = None

        def is_settled() -> bool:
            nonlocal into
            if self._is_over or self._next is not None:
                return True
            into = self._lane.place(chunk)
            return into is not None

        with self._lane.changed:
            self._lane.changed.wait_for(is_settled)  # stop() and adopt() end this wait
        return into
