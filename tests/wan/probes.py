"""Small measurements with sockets of emulated hosts, all on the clock of this process."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from crosspipe_ray.testing.wan import Wan

TIMEOUT_S = 20.0
_MS_PER_S = 1e3
_SOCKET_BUFFER_BYTES = 32 * 1024 * 1024
_SO_RCVBUFFORCE = 33


class Datagrams:
    """A UDP socket on each of two hosts, each knowing the other.

    Args:
        wan: both hosts are in it.
        stack: closes the sockets.
    """

    def __init__(self, wan: Wan, stack: ExitStack, src: str = "us", dst: str = "eu") -> None:
        self.there, self.back = (
            stack.enter_context(wan.open_socket(place, socket.SOCK_DGRAM)) for place in (src, dst)
        )
        for end, place in ((self.there, src), (self.back, dst)):
            end.settimeout(TIMEOUT_S)
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER_BYTES)
            end.bind((wan.address(place), 0))
        self.there.connect(self.back.getsockname())
        self.back.connect(self.there.getsockname())

    def one_way_ms(self) -> float:
        """From the first host to the second."""
        return _pass(self.there, self.back)

    def round_trip_ms(self) -> float:
        """There and back."""
        return _pass(self.there, self.back) + _pass(self.back, self.there)


def _pass(sender: socket.socket, receiver: socket.socket) -> float:
    start = time.perf_counter()
    sender.send(b"probe")
    receiver.recv(16)
    return (time.perf_counter() - start) * _MS_PER_S


def connection(wan: Wan, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from us to eu: both ends."""
    listener = stack.enter_context(wan.open_socket("eu"))
    listener.bind((wan.address("eu"), 0))
    listener.listen()
    listener.settimeout(TIMEOUT_S)
    client = stack.enter_context(wan.open_socket("us"))
    client.settimeout(TIMEOUT_S)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    server.settimeout(TIMEOUT_S)
    return client, stack.enter_context(server)


def goodput_mbit_s(wan: Wan, num_bytes: int, *, warm_up: float = 0.3) -> float:
    """Rate at which a TCP stream arrives, without its first part (``warm_up`` of the whole)."""
    arrivals = _transfer(wan, bytes(num_bytes))[1]
    start_s, start_bytes = next(each for each in arrivals if each[1] > num_bytes * warm_up)
    end_s, end_bytes = arrivals[-1]
    return (end_bytes - start_bytes) * 8e-6 / (end_s - start_s)


def arrives_intact(wan: Wan, content: bytes) -> bool:
    """Whether a TCP stream brings what was sent."""
    return _transfer(wan, content)[0] == hashlib.sha256(content).digest()


def _transfer(wan: Wan, content: bytes) -> tuple[bytes, list[tuple[float, int]]]:
    """Digest of what arrives, and (seconds, bytes so far) of each read."""
    with ExitStack() as stack:
        client, server = connection(wan, stack)
        sender = threading.Thread(target=_send, args=(client, content), daemon=True)
        sender.start()
        digest, arrivals, total = hashlib.sha256(), [], 0
        buffer = bytearray(1 << 20)
        while received := server.recv_into(buffer):
            total += received
            digest.update(memoryview(buffer)[:received])
            arrivals.append((time.perf_counter(), total))
        sender.join(TIMEOUT_S)
        return digest.digest(), arrivals


def _send(client: socket.socket, content: bytes) -> None:
    client.sendall(content)
    client.shutdown(socket.SHUT_WR)


def settles(
    measure: Callable[[], float], *, expected: float, tolerance: float, num_attempts: int = 6
) -> tuple[bool, list[float]]:
    """Whether a measurement comes out right once; other processes may disturb some attempts.

    Returns:
        That, and what was measured, for the message.
    """
    measured: list[float] = []
    while len(measured) < num_attempts:
        measured.append(measure())
        if abs(measured[-1] - expected) <= tolerance:
            return True, measured
    return False, measured


def median_of(measure: Callable[[], float], count: int = 15) -> float:
    """Median of some measurements."""
    return median(measure() for _ in range(count))
