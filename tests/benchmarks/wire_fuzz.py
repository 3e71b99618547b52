"""Malformed frames against the streams' wire format: none accepted, no crash, bounded memory.

    python -m tests.benchmarks.wire_fuzz              1,000,000 frames, one minute
    python -m tests.benchmarks.wire_fuzz 50000 --seed 7

Half of them carry a wrong MAC (flipped bits, cut, lengthened, random, another stream's key), half
the right one around fields that cannot be, as from a peer with the token gone mad.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

from crosspipe_ray.engine.transports.streams import wire
from crosspipe_ray.engine.transports.streams.wire import (
    Ack,
    Challenge,
    Chunk,
    Frame,
    Hello,
    Welcome,
    WireError,
)

_KEY = b"k" * 32
_MAX_64 = 2**64 - 1
_KINDS: list[type[Frame]] = [Challenge, Hello, Welcome, Chunk, Ack]

Malformed = tuple[type[Frame], bytes]


def main() -> None:
    """Runs the fuzzing and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num_frames", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    peak_bytes = fuzz_decoder(arguments.num_frames, seed=arguments.seed)
    print(f"{arguments.num_frames} malformed frames refused, peak {peak_bytes} bytes")


def fuzz_decoder(num_frames: int, *, seed: int) -> int:
    """Decodes malformed frames; returns the most memory that was in use for it, in bytes.

    Raises:
        AssertionError: one was accepted.
    """
    rng = random.Random(seed)
    tracemalloc.start()
    try:
        for _ in range(num_frames):
            kind, data = rng.choice(_MAKERS)(rng)
            assert not _is_accepted(kind, data), f"{kind.__name__}: {data.hex()}"
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def forged(frame: Frame, key: bytes, *, number: int | None = None, version: int = 1) -> bytes:
    """A frame with a right MAC, whatever is in it."""
    number = wire._KINDS[type(frame)] if number is None else number
    body = wire._PREFIX.pack(wire.MAGIC, version, number) + wire._FIELDS[type(frame)].pack(*frame)
    return body + wire._mac(body, key)


def _is_accepted(kind: Any, data: bytes) -> bool:
    try:
        wire.decode(data, kind, _KEY)
    except WireError:
        return False
    return True


def _valid(rng: random.Random) -> Frame:
    total = rng.randrange(1, wire.MAX_CHUNK_BYTES)
    offset = rng.randrange(total)
    place = (rng.randrange(8), 8 + rng.randrange(8), rng.randrange(4), 4)
    frames: list[Frame] = [
        Challenge(rng.randbytes(wire.NONCE_BYTES)),
        Hello(*place, rng.randbytes(wire.NONCE_BYTES)),
        Welcome(rng.randrange(1000)),
        Chunk(
            rng.randrange(1000), rng.randrange(9), rng.randrange(9), total, offset, total - offset
        ),
        Ack(rng.randrange(1000)),
    ]
    return rng.choice(frames)


def _with_flipped_bits(rng: random.Random) -> Malformed:
    frame = _valid(rng)
    data = bytearray(wire.encode(frame, _KEY))
    for bit in rng.sample(range(8 * len(data)), rng.randint(1, 8)):
        data[bit // 8] ^= 1 << bit % 8
    return type(frame), bytes(data)


def _of_another_length(rng: random.Random) -> Malformed:
    frame = _valid(rng)
    data = wire.encode(frame, _KEY)
    if rng.random() < 0.5:
        return type(frame), data[: rng.randrange(len(data))]
    return type(frame), data + rng.randbytes(rng.randint(1, 100))


def _random_bytes(rng: random.Random) -> Malformed:
    kind = rng.choice(_KINDS)
    size = wire.frame_bytes(kind)
    prefix = wire.MAGIC + bytes([wire.VERSION]) if rng.random() < 0.5 else b""
    return kind, prefix + rng.randbytes(size - len(prefix))


def _with_another_key(rng: random.Random) -> Malformed:
    frame = _valid(rng)
    return type(frame), wire.encode(frame, rng.randbytes(32))


def _chunk_that_cannot_be(rng: random.Random) -> Malformed:
    offset = rng.randrange(2**48)
    size = rng.randrange(2**32)
    total = rng.choice([rng.randrange(offset + size), _MAX_64, wire.MAX_MESSAGE_BYTES + 1])
    if rng.random() < 0.3:
        size, total = wire.MAX_CHUNK_BYTES + rng.randint(1, 2**31), wire.MAX_MESSAGE_BYTES
    return Chunk, forged(Chunk(1, 2, 3, total, offset, size), _KEY)


def _hello_that_cannot_be(rng: random.Random) -> Malformed:
    num_streams = rng.randrange(2**16)
    stream = rng.randrange(num_streams, 2**16)
    return Hello, forged(Hello(0, 1, stream, num_streams, rng.randbytes(32)), _KEY)


def _of_another_kind(rng: random.Random) -> Malformed:
    frame = _valid(rng)
    numbers = sorted(set(range(256)) - {wire._KINDS[type(frame)]})
    return type(frame), forged(frame, _KEY, number=rng.choice(numbers))


def _of_another_version(rng: random.Random) -> Malformed:
    frame = _valid(rng)
    version = rng.choice([0, *range(wire.VERSION + 1, 256)])
    return type(frame), forged(frame, _KEY, version=version)


_MAKERS: list[Callable[[random.Random], Malformed]] = [
    _with_flipped_bits,
    _of_another_length,
    _random_bytes,
    _with_another_key,
    _chunk_that_cannot_be,
    _hello_that_cannot_be,
    _of_another_kind,
    _of_another_version,
]


if __name__ == "__main__":
    main()
