"""Where a rank takes connections: who has no certificate or token is refused, logged, forgotten."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from crosspipe_ray.engine.transports.streams.connection import Address, Connection
from crosspipe_ray.engine.transports.streams.credentials import Credentials
from crosspipe_ray.engine.transports.streams.wire import Hello, WireError

Admit = Callable[[Hello, Connection], None]

_log = logging.getLogger(__name__)

# Strangers take this much and no more: the others wait in the kernel's queue.
_NUM_HANDSHAKES = 8
HANDSHAKE_TIMEOUT_S = 5.0
_BACKLOG = 128
_PAUSE_S = 0.05


class Door:
    """A listening socket; whoever connects before ``open`` waits.

    Args:
        host: address of this machine that the other ranks reach.
        port: default: any free one.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self.address: Address = self._listener.getsockname()[:2]
        self._shut = threading.Event()
        self._slots = threading.Semaphore(_NUM_HANDSHAKES)
        self._guests: set[Connection] = set()
        self._greeters = ThreadPoolExecutor(_NUM_HANDSHAKES, thread_name_prefix="transport door")
        self._thread: threading.Thread | None = None

    def open(self, credentials: Credentials, admit: Admit) -> None:
        """Starts to take connections.

        Args:
            credentials: of this rank.
            admit: takes over a connection whose other end has proved what it says; raises a
                WireError if there is no such stream.
        """
        context = credentials.server

        def greet(plain: socket.socket, host: str) -> None:
            try:
                self._greet(plain, host, context, credentials.token, admit)
            finally:
                self._slots.release()

        self._thread = threading.Thread(
            target=self._run, args=(greet,), name="transport door", daemon=True
        )
        self._thread.start()

    def _run(self, greet: Callable[[socket.socket, str], None]) -> None:
        while not self._shut.is_set():
            self._slots.acquire()  # a greeter gives it back within the handshake's timeout
            try:
                plain, address = self._listener.accept()
            except OSError:  # shut, or the guest has left again, or there are too many open files
                self._slots.release()
                self._shut.wait(_PAUSE_S)
            else:
                self._greeters.submit(greet, plain, f"{address[0]}:{address[1]}")

    def _greet(
        self,
        plain: socket.socket,
        host: str,
        context: ssl.SSLContext,
        token: bytes,
        admit: Admit,
    ) -> None:
        try:
            connection = Connection.answer(plain, context, timeout_s=HANDSHAKE_TIMEOUT_S)
        except OSError as error:
            _log.debug("%s has left at once: %s", host, error)
            plain.close()
            return
        self._guests.add(connection)
        try:
            if self._shut.is_set():
                raise ConnectionAbortedError("the door is shut")
            admit(connection.identify(token), connection)
        except (ssl.SSLEOFError, ConnectionError) as error:
            _log.debug("%s has left: %s", host, error)  # somebody who looked whether we are there
            connection.close()
        except (OSError, WireError) as error:
            _log.warning("refused %s: %s", host, error)
            connection.close()
        finally:
            self._guests.discard(connection)

    def shut(self) -> None:
        """From now on every connection is refused, at once; from any thread."""
        self._shut.set()
        with suppress(OSError):  # shut before
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept, close does not
        for connection in self._guests.copy():
            connection.cut()

    def close(self) -> None:
        """Leaves no thread and no socket behind."""
        self.shut()
        if self._thread is not None:
            self._thread.join(2 * HANDSHAKE_TIMEOUT_S)
        self._greeters.shutdown()
        self._listener.close()


def is_closed(address: Address, *, timeout_s: float) -> bool:
    """Whether a door is certainly closed for good; one that does not answer may come back."""
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False
