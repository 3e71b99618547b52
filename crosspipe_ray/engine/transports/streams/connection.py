"""One TLS connection of a stream: frames and payloads, in blocking calls from one thread."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field

from crosspipe_ray.engine.transports.streams import wire
from crosspipe_ray.engine.transports.streams.wire import (
    AnyFrame,
    Challenge,
    Chunk,
    Frame,
    Hello,
    Welcome,
)

Address = tuple[str, int]
Place = tuple[int, int, int, int]

# Up to here a payload shares the TLS record, and so the packet, of its chunk's frame.
_ONE_RECORD_BYTES = 16 * 1024 - wire.frame_bytes(Chunk)
# Bytes that wait in the kernel of a slow stream are bytes that no faster one can take.
_MAX_UNSENT_BYTES = 256 * 1024
_TCP_OPTIONS = {
    "TCP_NODELAY": 1,
    "TCP_NOTSENT_LOWAT": _MAX_UNSENT_BYTES,
    # A silent partition is noticed after half a minute, even on a stream that has nothing to say.
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}


@dataclass(frozen=True, slots=True)
class Route:
    """One stream, seen from one of its ends.

    Args:
        src: the rank that sends.
        dst: the rank that receives.
        stream: which one of the lane's.
        num_streams: of the lane.
        address: of the other end's door.
        connect_s: longest time until the first connection.
        resume_s: longest time that a lost connection may take to come back.
    """

    src: int
    dst: int
    stream: int = field(default=0, kw_only=True)
    num_streams: int = field(default=1, kw_only=True)
    address: Address = field(kw_only=True)
    connect_s: float = field(kw_only=True)
    resume_s: float = field(kw_only=True)

    @property
    def place(self) -> Place:
        """What both ends must agree on."""
        return self.src, self.dst, self.stream, self.num_streams

    @property
    def name(self) -> str:
        """For errors and threads.

        >>> route = Route(0, 1, stream=2, num_streams=4, address=("", 1), connect_s=9, resume_s=9)
        >>> route.name
        'stream 2 of 0->1'
        """
        return f"stream {self.stream} of {self.src}->{self.dst}"


class Connection:
    """A connected socket with TLS.

    ``cut`` and ``is_lost`` may be called from any thread, everything else from one at a time.

    Args:
        tls: its handshake need not be done yet.
        timeout_s: longest time for each call until ``settle``.

    Attributes:
        num_sent_bytes: by ``send``.
    """

    def __init__(self, tls: ssl.SSLSocket, *, timeout_s: float) -> None:
        self._tls = tls
        self.num_sent_bytes = 0
        self._key = wire.open_key()
        self._header = bytearray(max(map(wire.frame_bytes, (Challenge, Hello, Welcome, Chunk))))
        tls.settimeout(timeout_s)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _TCP_OPTIONS.items():
            if hasattr(socket, option):  # macOS lacks some
                tls.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    @classmethod
    def dial(
        cls, address: Address, context: ssl.SSLContext, *, name: str, timeout_s: float
    ) -> Connection:
        """Connects to a door whose certificate is for ``name``; ``introduce`` does the handshake.

        Raises:
            OSError: nobody there.
        """
        plain = socket.create_connection(address, timeout=timeout_s)
        tls = context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        return cls(tls, timeout_s=timeout_s)

    @classmethod
    def answer(
        cls, plain: socket.socket, context: ssl.SSLContext, *, timeout_s: float
    ) -> Connection:
        """The other end of ``dial``; ``identify`` does the handshake."""
        tls = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        return cls(tls, timeout_s=timeout_s)

    def introduce(self, hello: Hello, token: bytes) -> int:
        """Says which stream this is; returns how many of its chunks the receiver has.

        Args:
            hello: with a new nonce.
            token: of the run.

        Raises:
            WireError, OSError: refused, or this is another run's receiver.
        """
        self._tls.do_handshake()
        challenge = self.receive(Challenge)
        self._key = wire.hello_key(token, challenge)
        self.send(hello)
        self._key = wire.stream_key(token, challenge, hello)
        return self.receive(Welcome).num_chunks

    def identify(self, token: bytes) -> Hello:
        """Finds out which stream this is; the caller goes on with a ``Welcome``.

        Raises:
            WireError, OSError: somebody without the token or a certificate.
        """
        self._tls.do_handshake()
        challenge = Challenge(wire.nonce())
        self.send(challenge)
        self._key = wire.hello_key(token, challenge)
        hello = self.receive(Hello)
        self._key = wire.stream_key(token, challenge, hello)
        return hello

    def settle(self) -> None:
        """From now on calls wait for as long as it takes; ``cut`` ends them."""
        self._tls.settimeout(None)

    def send(self, frame: Frame, payload: memoryview | None = None) -> None:
        """Writes a frame and the bytes that belong to it."""
        header = wire.encode(frame, self._key)
        self.num_sent_bytes += len(header) + (0 if payload is None else len(payload))
        if payload is None:
            self._tls.sendall(header)
        elif len(payload) <= _ONE_RECORD_BYTES:
            self._tls.sendall(header + payload)
        else:
            self._tls.sendall(header)
            self._tls.sendall(payload)

    def receive(self, kind: type[AnyFrame]) -> AnyFrame:
        """Reads a frame of this kind.

        Raises:
            WireError: it is none.
            OSError: the connection is lost.
        """
        header = memoryview(self._header)[: wire.frame_bytes(kind)]
        self.receive_into(header)
        return wire.decode(header, kind, self._key)

    def receive_into(self, view: memoryview) -> None:
        """Fills some memory.

        Raises:
            OSError: the connection is lost.
        """
        received = 0
        while received < len(view):
            num_bytes = self._tls.recv_into(view[received:])
            if num_bytes == 0:
                raise ConnectionResetError("the other end has closed it")
            received += num_bytes

    def fileno(self) -> int:
        """For a poll, once ``has_more`` is False."""
        return self._tls.fileno()

    @property
    def has_more(self) -> bool:
        """Whether bytes have been decrypted that nobody has read."""
        return self._tls.pending() > 0

    @property
    def is_lost(self) -> bool:
        """Whether a call that waits for bytes would find none to come; from any thread."""
        try:
            # SSLSocket.recv takes no flags, and would take bytes that another thread waits for.
            return not socket.socket.recv(self._tls, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def cut(self) -> None:
        """Ends the calls of other threads with an OSError."""
        with suppress(OSError):
            # SSLSocket.shutdown would first take TLS away under the feet of another thread.
            socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def close(self) -> None:
        """Frees the socket."""
        self._tls.close()
