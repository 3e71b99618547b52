"""What a message weighs once it is encoded; `engine.tensor_codecs` does what is said here.

Links without a codec send tensors as they are. Codecs are for floating-point messages of at least
``MIN_MESSAGE_BYTES``; all else stays as it is.
"""

from __future__ import annotations

from typing import Literal

CodecKind = Literal["bf16", "int8"]

BLOCK_VALUES = 256
"""Values that share a scale in int8."""
SCALE_BYTES = 4
"""A float32: gradients are too small for float16."""
MIN_MESSAGE_BYTES = 1024


def encoded_bytes(kind: CodecKind, num_bytes: int, *, element_bytes: int = 4) -> int:
    """Size of a message after its codec.

    Args:
        kind: bf16 keeps 2 bytes per value, int8 one and a scale per block.
        num_bytes: before the codec.
        element_bytes: of a value before the codec.

    >>> [encoded_bytes("bf16", 4096), encoded_bytes("int8", 4096), encoded_bytes("int8", 512)]
    [2048, 1040, 512]
    """
    if num_bytes < MIN_MESSAGE_BYTES or (kind == "bf16" and element_bytes <= 2):
        return num_bytes
    num_values = -(-num_bytes // element_bytes)
    return 2 * num_values if kind == "bf16" else int8_bytes(num_values)


def int8_bytes(num_values: int) -> int:
    """A byte per value, and a scale per block."""
    return num_values + SCALE_BYTES * -(-num_values // BLOCK_VALUES)
