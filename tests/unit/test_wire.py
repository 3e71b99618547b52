import secrets
from typing import Any

import pytest

from crosspipe_ray.engine.transports.streams import wire
from crosspipe_ray.engine.transports.streams.wire import (
    Ack,
    Challenge,
    Chunk,
    Frame,
    Hello,
    Welcome,
    WireError,
    decode,
    encode,
)
from tests.benchmarks.wire_fuzz import forged, fuzz_decoder

KEY = b"k" * 32
MIB = 1024 * 1024
CHUNK = Chunk(number=3, sequence=9, tag=7, total_bytes=10 * MIB, offset=4 * MIB, size=MIB)
FRAMES: list[Frame] = [
    Challenge(b"c" * wire.NONCE_BYTES),
    Hello(src=0, dst=1, stream=2, num_streams=4, nonce=b"n" * wire.NONCE_BYTES),
    Welcome(5),
    CHUNK,
    Ack(6),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    data = encode(frame, KEY)
    assert len(data) == wire.frame_bytes(type(frame))
    kind: Any = type(frame)
    assert decode(data, kind, KEY) == frame


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_every_single_bit_counts(frame: Frame) -> None:
    kind: Any = type(frame)
    data = encode(frame, KEY)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode(changed, kind, KEY)


def test_a_frame_of_another_kind_or_key_is_refused() -> None:
    with pytest.raises(WireError, match="kind 5 in place of a Welcome"):
        decode(encode(Ack(6), KEY), Welcome, KEY)
    with pytest.raises(WireError, match="wrong MAC"):
        decode(encode(Ack(6), KEY), Ack, b"x" * 32)


def test_another_version_says_so() -> None:
    data = bytearray(encode(Ack(6), KEY))
    data[len(wire.MAGIC)] = 9
    with pytest.raises(WireError, match="version 9"):
        decode(data, Ack, KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": wire.MAX_CHUNK_BYTES + 1},
        {"size": 2**32 - 1},
        {"offset": 2**64 - 1},
        {"offset": 10 * MIB},
        {"size": 0},
        {"total_bytes": 2**64 - 1},
        {"total_bytes": 0},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_on_both_sides(changes: dict[str, int]) -> None:
    bad = CHUNK._replace(**changes)
    with pytest.raises(WireError):
        encode(bad, KEY)
    with pytest.raises(WireError, match=r"bytes|empty"):
        decode(forged(bad, KEY), Chunk, KEY)


@pytest.mark.parametrize("place", [(0, 1, 4, 4), (0, 1, 0, 65), (1, 1, 0, 1)])
def test_streams_that_cannot_be_are_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(WireError, match=r"stream|itself"):
        decode(forged(Hello(*place, wire.nonce()), KEY), Hello, KEY)


def test_keys_differ_by_token_challenge_and_place() -> None:
    token = secrets.token_bytes(32)
    challenge, other = Challenge(wire.nonce()), Challenge(wire.nonce())
    hello = Hello(0, 1, 0, 1, wire.nonce())
    keys = {
        wire.hello_key(token, challenge),
        wire.hello_key(token, other),
        wire.hello_key(token + b"x", challenge),
        wire.stream_key(token, challenge, hello),
        wire.stream_key(token, other, hello),
        wire.stream_key(token, challenge, hello._replace(dst=2)),
        wire.stream_key(token, challenge, hello._replace(nonce=wire.nonce())),
    }
    assert len(keys) == 7


def test_malformed_frames_are_refused_in_bounded_memory() -> None:
    peak_bytes = fuzz_decoder(20_000, seed=1)
    assert peak_bytes < 64 * 1024
