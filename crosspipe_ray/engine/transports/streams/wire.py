"""What travels over a stream: five kinds of frames of fixed size, each with a MAC.

Nothing here opens a socket or allocates by a number that came from outside. A reader always knows
which kind comes next, so it reads that many bytes and no more; ``decode`` looks at the fields only
once the MAC is right. The bytes of a tensor follow their ``Chunk`` and go straight into the memory
of the receive that waits for them.

A stream's own key is in every MAC: it comes from the run's token, both sides' random numbers and
the stream's place (src, dst, number). So a frame of another run, stream, direction or connection
does not count.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from typing import NamedTuple, TypeVar

from crosspipe_ray.carriers import MAX_STREAMS
from crosspipe_ray.errors import RunError

MAGIC = b"XPST"
VERSION = 1
MAX_CHUNK_BYTES = 4 * 1024 * 1024
MAX_MESSAGE_BYTES = 2**40
MAX_TAG = 2**64 - 1
NONCE_BYTES = 32
MAC_BYTES = 16

_PREFIX = struct.Struct("!4sBB")
_LABEL = b"crosspipe_ray streams 1"


class WireError(RunError):
    """Bytes that are no frame of this stream; the connection they came over is dropped."""


class Challenge(NamedTuple):
    """Receiver to sender, first of all: a random number that has never been used before."""

    nonce: bytes


class Hello(NamedTuple):
    """Sender to receiver: which stream of which lane this is, by somebody who has the token."""

    src: int
    dst: int
    stream: int
    num_streams: int
    nonce: bytes


class Welcome(NamedTuple):
    """Receiver to sender: how many chunks of this stream came over its earlier connections."""

    num_chunks: int


class Chunk(NamedTuple):
    """Sender to receiver: the next ``size`` bytes belong at ``offset`` of a message.

    ``number`` counts the chunks of the stream, ``sequence`` the messages of the lane.
    """

    number: int
    sequence: int
    tag: int
    total_bytes: int
    offset: int
    size: int


class Ack(NamedTuple):
    """Receiver to sender: so many chunks of this stream are in their tensors."""

    num_chunks: int


Frame = Challenge | Hello | Welcome | Chunk | Ack
AnyFrame = TypeVar("AnyFrame", Challenge, Hello, Welcome, Chunk, Ack)

_KINDS: dict[type[Frame], int] = {Challenge: 1, Hello: 2, Welcome: 3, Chunk: 4, Ack: 5}
_FIELDS: dict[type[Frame], struct.Struct] = {
    Challenge: struct.Struct(f"!{NONCE_BYTES}s"),
    Hello: struct.Struct(f"!IIHH{NONCE_BYTES}s"),
    Welcome: struct.Struct("!Q"),
    Chunk: struct.Struct("!QQQQQI"),
    Ack: struct.Struct("!Q"),
}


def frame_bytes(kind: type[Frame]) -> int:
    """The size of a frame on the wire.

    >>> [frame_bytes(kind) for kind in (Challenge, Hello, Welcome, Chunk, Ack)]
    [54, 66, 30, 66, 30]
    """
    return _PREFIX.size + _FIELDS[kind].size + MAC_BYTES


def nonce() -> bytes:
    """A new random number."""
    return secrets.token_bytes(NONCE_BYTES)


def open_key() -> bytes:
    """The key of a challenge, which nobody can authenticate yet: a checksum, no protection."""
    return _LABEL


def hello_key(token: bytes, challenge: Challenge) -> bytes:
    """The key of a hello: proves the token to the one who has sent this challenge."""
    return hmac.digest(token, _LABEL + b" hello" + challenge.nonce, "sha256")


def stream_key(token: bytes, challenge: Challenge, hello: Hello) -> bytes:
    """The key of everything after the hello, for this connection alone."""
    place = _FIELDS[Hello].pack(*hello)
    return hmac.digest(token, _LABEL + b" stream" + challenge.nonce + place, "sha256")


def encode(frame: Frame, key: bytes) -> bytes:
    """A frame's bytes.

    Raises:
        WireError: a number is beyond its limit.
    """
    if reason := _broken_limit(frame):
        raise WireError(reason)
    body = _PREFIX.pack(MAGIC, VERSION, _KINDS[type(frame)]) + _FIELDS[type(frame)].pack(*frame)
    return body + _mac(body, key)


def decode(data: bytes | bytearray | memoryview, kind: type[AnyFrame], key: bytes) -> AnyFrame:
    """The frame of the expected kind in these bytes.

    Raises:
        WireError: they are anything else; says what.
    """
    if len(data) != frame_bytes(kind):
        raise WireError(f"{len(data)} bytes are no {kind.__name__}")
    magic, version, number = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise WireError("not a stream of crosspipe_ray")
    if version != VERSION:
        raise WireError(f"version {version} of the stream format; this is version {VERSION}")
    body = data[:-MAC_BYTES]
    if not hmac.compare_digest(_mac(body, key), data[-MAC_BYTES:]):
        raise WireError(f"a {kind.__name__} with a wrong MAC: another token, or changed on its way")
    if number != _KINDS[kind]:
        raise WireError(f"kind {number} in place of a {kind.__name__}")
    frame = kind(*_FIELDS[kind].unpack_from(data, _PREFIX.size))
    if reason := _broken_limit(frame):
        raise WireError(reason)
    return frame


def _mac(body: bytes | bytearray | memoryview, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:MAC_BYTES]


def _broken_limit(frame: Frame) -> str | None:
    if isinstance(frame, Chunk):
        return _broken_chunk(frame)
    if isinstance(frame, Hello):
        if not 0 <= frame.stream < frame.num_streams <= MAX_STREAMS:
            return f"stream {frame.stream} of {frame.num_streams}: at most {MAX_STREAMS}"
        if frame.src == frame.dst:
            return f"a lane from rank {frame.src} to itself"
    return None


def _broken_chunk(chunk: Chunk) -> str | None:
    if chunk.total_bytes > MAX_MESSAGE_BYTES:
        return f"a message of {chunk.total_bytes} bytes: at most {MAX_MESSAGE_BYTES}"
    if chunk.size > MAX_CHUNK_BYTES:
        return f"a chunk of {chunk.size} bytes: at most {MAX_CHUNK_BYTES}"
    if chunk.offset + chunk.size > chunk.total_bytes:
        return f"bytes {chunk.offset} to {chunk.offset + chunk.size} of {chunk.total_bytes}"
    if chunk.size == 0 and chunk.total_bytes > 0:
        return "an empty chunk of a message that is not empty"
    return None
