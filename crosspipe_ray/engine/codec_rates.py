"""How fast a rank encodes and decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

from torch import Tensor

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.engine.stopwatch import time_us
from crosspipe_ray.engine.tensor_codecs import decode, encode, new_residual


@dataclass(frozen=True, slots=True)
class CodecRates:
    """How fast a codec is, in bytes before it; encoding counts with int8's error feedback."""

    kind: CodecKind
    encode_bytes_per_s: float
    decode_bytes_per_s: float


def codec_rates(kind: CodecKind, message: Tensor, *, num_repeats: int) -> CodecRates:
    """Measures a codec on a message; medians."""
    residual = new_residual(message.numel(), message.device)
    encoded = encode(message, kind, residual=residual)
    ways = (
        partial(encode, message, kind, residual=residual),
        partial(decode, encoded, kind, shape=tuple(message.shape), dtype=message.dtype),
    )
    times_us = [median(time_us(way, message.device) for _ in range(num_repeats)) for way in ways]
    return CodecRates(kind, *(message.nbytes / each_us * 1e6 for each_us in times_us))
