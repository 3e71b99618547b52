"""A TCP proxy that counts, records and cuts what goes through it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

_BLOCK_BYTES = 64 * 1024


class CuttingProxy:
    """Forwards connections to a target, and cuts some of them.

    Args:
        target: address to forward to.
        cut_after_bytes: towards the target, for each connection in the order of coming; those
            beyond the end are never cut.
    """

    def __init__(self, target: tuple[str, int], cut_after_bytes: Iterable[int] = ()) -> None:
        self.num_bytes = 0
        self.recorded = bytearray()
        self.num_cuts = 0
        self._target = target
        self._limits = iter(cut_after_bytes)
        self._is_closed = False
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._muted: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self._target, timeout=10.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            limit = next(self._limits, None)
            self._start(self._serve, near, far, limit)

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _serve(self, near: socket.socket, far: socket.socket, limit: int | None) -> None:
        self._pairs.add((near, far))
        back = self._start(self._forward, far, near, None)
        self._forward(near, far, limit)
        back.join(10.0)
        # Closed with unread bytes they reset the connection, as a dead peer does.
        self._pairs.discard((near, far))
        near.close()
        far.close()

    def _forward(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        num_bytes = 0
        with suppress(OSError):
            while limit is None or num_bytes < limit:
                room = _BLOCK_BYTES if limit is None else min(_BLOCK_BYTES, limit - num_bytes)
                block = source.recv(room)
                if not block:
                    break
                num_bytes += len(block)
                with self._lock:
                    self.num_bytes += len(block)
                    self.recorded += block[:4096]
                if target not in self._muted:
                    target.sendall(block)
        self.num_cuts += limit is not None and num_bytes >= limit
        _shut(source)
        _shut(target)

    def lose_answers(self) -> None:
        """Lets nothing come back from the target over what is connected now."""
        self._muted = {near for near, _ in self._pairs.copy()}

    def cut_all(self) -> None:
        """Cuts what is connected now."""
        for near, far in self._pairs.copy():
            _shut(near)
            _shut(far)

    def close(self) -> None:
        """Cuts everything and ends the threads."""
        self._is_closed = True
        _shut(self._listener)
        self.cut_all()
        for thread in self._threads.copy():
            thread.join(10.0)
        self._listener.close()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
