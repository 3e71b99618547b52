"""Codecs of tensors: fewer bytes on a link, for numbers that are not the same afterwards.

bf16 rounds each value (relative error at most 2^-8). int8 gives each block of 256 values a float32
scale, its largest value / 127, and rounds to multiples of it (error at most scale / 2, and the
rounding of the dtype that is decoded to). Infinities and NaN survive bf16; in int8 a block with one
of them arrives as NaN all over, so that a run that diverges is seen to.

Error feedback: what rounding has taken from one message is added to the next one of its stream
(Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes").
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from crosspipe_ray.codec import (
    BLOCK_VALUES,
    SCALE_BYTES,
    CodecKind,
    encoded_bytes,
    int8_bytes,
)

_LARGEST = 127
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # so that a block of zeros divides by no zero
_PIECE_BLOCKS = 512  # half a MiB of float32, which caches hold from one pass to the next


def applies(kind: CodecKind, tensor_bytes: int, dtype: torch.dtype) -> bool:
    """Whether a codec changes a message of this size and dtype; other messages go as they are."""
    if not dtype.is_floating_point or dtype.itemsize not in (2, 4):
        return False
    return encoded_bytes(kind, tensor_bytes, element_bytes=dtype.itemsize) < tensor_bytes


def encode(tensor: Tensor, kind: CodecKind, *, residual: Tensor | None = None) -> Tensor:
    """A tensor as it goes over a link.

    Args:
        tensor: of floats, any shape and layout.
        kind: of codec.
        residual: int8's error feedback, as `new_residual` makes it: added to the tensor, and
            changed in place to what this message lacks.

    Returns:
        bf16: the same shape in bfloat16. int8: bytes, shape [encoded bytes]: the scales of all
        blocks, then one byte per value.
    """
    if kind == "bf16":
        return tensor.to(torch.bfloat16).contiguous()
    flat = tensor.detach().reshape(-1)
    blocks = _filled(flat, -len(flat) % BLOCK_VALUES).view(-1, BLOCK_VALUES)
    encoded = flat.new_empty(len(blocks) * (SCALE_BYTES + BLOCK_VALUES), dtype=torch.uint8)
    scales, numbers = _parts(encoded, len(blocks))
    for piece in _pieces(len(blocks)):
        values = blocks[piece].float()
        if residual is not None:
            values = residual[piece].add_(values)
        _quantise(values, scales[piece], numbers[piece])
        if residual is not None:
            values.sub_(numbers[piece] * scales[piece]).nan_to_num_(0.0, 0.0, 0.0)
    return encoded[: len(blocks) * SCALE_BYTES + len(flat)]


def decode(
    encoded: Tensor, kind: CodecKind, *, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """What `encode` was given, as near as the codec keeps it."""
    if kind == "bf16":
        return encoded.to(dtype).view(shape)
    num_values = torch.Size(shape).numel()
    num_blocks = -(-num_values // BLOCK_VALUES)
    scales, numbers = _parts(_filled(encoded, -num_values % BLOCK_VALUES), num_blocks)
    values = encoded.new_empty((num_blocks, BLOCK_VALUES), dtype=dtype)
    for piece in _pieces(num_blocks):
        torch.mul(numbers[piece], scales[piece], out=values[piece])
    return values.view(-1)[:num_values].view(shape)


def new_residual(num_values: int, device: torch.device) -> Tensor:
    """The error feedback of a stream of messages before the first: zeros, by block, in float32."""
    num_blocks = -(-num_values // BLOCK_VALUES)
    return torch.zeros((num_blocks, BLOCK_VALUES), dtype=torch.float32, device=device)


def encoded_spec(kind: CodecKind, shape: tuple[int, ...]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what `encode` makes of a tensor that the codec applies to."""
    if kind == "bf16":
        return shape, torch.bfloat16
    return (int8_bytes(torch.Size(shape).numel()),), torch.uint8


def _quantise(values: Tensor, scales: Tensor, numbers: Tensor) -> None:
    torch.mul(values.abs().amax(1, keepdim=True), 1 / _LARGEST, out=scales)
    scales.clamp_(min=_SMALLEST_SCALE).masked_fill_(~scales.isfinite(), torch.nan)
    numbers.copy_((values / scales).round_())


def _filled(flat: Tensor, num_missing: int) -> Tensor:
    """With zeros up to the end of the last block; a copy only then."""
    return pad(flat, (0, num_missing)) if num_missing else flat


def _parts(encoded: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Scales, shape [num_blocks, 1], and numbers, shape [num_blocks, BLOCK_VALUES]."""
    border = num_blocks * SCALE_BYTES
    scales = encoded[:border].view(torch.float32).view(-1, 1)
    return scales, encoded[border:].view(torch.int8).view(-1, BLOCK_VALUES)


def _pieces(num_blocks: int) -> Iterator[slice]:
    for start in range(0, num_blocks, _PIECE_BLOCKS):
        yield slice(start, start + _PIECE_BLOCKS)
