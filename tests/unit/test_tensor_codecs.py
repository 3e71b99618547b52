"""What codecs keep of a tensor, and what they lose at most."""

import pytest
import torch

from crosspipe_ray.codec import MIN_MESSAGE_BYTES, CodecKind, encoded_bytes
from crosspipe_ray.engine.tensor_codecs import (
    applies,
    decode,
    encode,
    encoded_spec,
    new_residual,
)

KINDS: tuple[CodecKind, ...] = ("bf16", "int8")
SHAPES = [(0,), (4, 0, 2), (), (1,), (3, 5), (256,), (257,), (2, 3, 171), (600, 256)]
INFINITY = float("inf")


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def through(tensor: torch.Tensor, kind: CodecKind) -> torch.Tensor:
    return decode(encode(tensor, kind), kind, shape=tuple(tensor.shape), dtype=tensor.dtype)


def scales_of(tensor: torch.Tensor) -> torch.Tensor:
    """The scale of each value's block, computed the slow way."""
    scales = [
        block.abs().max() / 127 for block in torch.split(tensor.reshape(-1), 256) for _ in block
    ]
    return torch.stack(scales).view(tensor.shape)


@pytest.mark.parametrize("exponent", [-30, -6, 0, 6, 30])
def test_bf16_is_right_to_one_part_in_256(exponent: int) -> None:
    tensor = values(1000) * 10.0**exponent
    assert bool(((through(tensor, "bf16") - tensor).abs() <= tensor.abs() * 2**-8).all())


@pytest.mark.parametrize("exponent", [-30, -6, 0, 6, 30])
def test_int8_is_right_to_half_a_scale(exponent: int) -> None:
    # One large value in the second block must not cost the others their precision.
    tensor = values(4, 256) * 10.0**exponent
    tensor[1, 7] *= 1000
    error = (through(tensor, "int8") - tensor).abs()
    assert bool((error <= scales_of(tensor) * (0.5 + 1e-4)).all())
    assert float(error.max()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_comes_back_and_weighs_what_planning_thinks(
    kind: CodecKind, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = values(*shape, dtype=dtype)
    encoded = encode(tensor, kind)
    decoded = decode(encoded, kind, shape=shape, dtype=dtype)

    assert (tuple(encoded.shape), encoded.dtype) == encoded_spec(kind, shape)
    assert (tuple(decoded.shape), decoded.dtype) == (shape, dtype)
    if applies(kind, tensor.nbytes, dtype):
        planned = encoded_bytes(kind, tensor.nbytes, element_bytes=dtype.itemsize)
        assert encoded.nbytes == planned < tensor.nbytes
    torch.testing.assert_close(decoded, tensor, rtol=0.01, atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_does_not_matter(kind: CodecKind) -> None:
    tensor = values(40, 50).T
    encoded = encode(tensor, kind)
    assert encoded.is_contiguous()
    assert torch.equal(encoded, encode(tensor.contiguous(), kind))


def test_a_long_message_is_no_other_than_its_blocks() -> None:
    tensor = values(1100, 256)
    by_block = torch.stack([through(block, "int8") for block in tensor])
    assert torch.equal(through(tensor, "int8"), by_block)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind: CodecKind) -> None:
    assert torch.equal(through(torch.zeros(300), kind), torch.zeros(300))


def test_values_below_the_smallest_scale_are_no_trouble() -> None:
    tensor = values(256) * 1e-40
    assert bool(((through(tensor, "int8") - tensor).abs() <= 2**-126 / 2).all())


@pytest.mark.parametrize("bad", [INFINITY, -INFINITY, float("nan")])
def test_what_is_not_finite_is_seen_to_be(bad: float) -> None:
    tensor = values(3, 256)
    tensor[1, 5] = bad
    torch.testing.assert_close(through(tensor, "bf16"), tensor, rtol=2**-8, atol=0, equal_nan=True)
    decoded = through(tensor, "int8")
    assert bool(decoded[1].isnan().all())
    assert bool(decoded[[0, 2]].isfinite().all())


def test_error_feedback_sends_later_what_rounding_took() -> None:
    residual = new_residual(300, torch.device("cpu"))
    tensors = [values(300, seed=seed) for seed in range(20)]
    decoded = [
        decode(encode(t, "int8", residual=residual), "int8", shape=(300,), dtype=torch.float32)
        for t in tensors
    ]
    lacking = sum(tensors) - sum(decoded)
    # All that is missing from the sum is what the last message lacks: half a scale, not twenty.
    torch.testing.assert_close(lacking, residual.view(-1)[:300], rtol=0, atol=1e-5)
    assert float(residual.abs().max()) <= 4.5 / 127 / 2


def test_one_value_that_would_round_to_zero_for_ever_arrives_in_the_end() -> None:
    tensor = torch.zeros(256)
    tensor[0], tensor[1] = 127.0, 0.1
    residual = new_residual(256, torch.device("cpu"))
    encoded = [encode(tensor, "int8", residual=residual) for _ in range(100)]
    total = sum(decode(e, "int8", shape=(256,), dtype=torch.float32)[1] for e in encoded)
    assert through(tensor, "int8")[1] == 0
    assert abs(float(total) - 100 * 0.1) <= 0.5 + 1e-3


def test_an_infinity_leaves_nothing_behind_in_error_feedback() -> None:
    tensor = values(2, 256)
    tensor[0, 3] = INFINITY
    residual = new_residual(512, torch.device("cpu"))
    encode(tensor, "int8", residual=residual)
    assert torch.equal(residual[0], torch.zeros(256))
    assert float(residual[1].abs().max()) > 0


def test_integers_and_short_messages_are_left_alone() -> None:
    for kind in KINDS:
        assert not applies(kind, 1 << 20, torch.int64)
        assert not applies(kind, 1 << 20, torch.uint8)
        assert not applies(kind, 1 << 20, torch.float64)
        assert not applies(kind, MIN_MESSAGE_BYTES - 1, torch.float32)
        assert applies(kind, MIN_MESSAGE_BYTES, torch.float32)
    assert not applies("bf16", 1 << 20, torch.bfloat16)
    assert applies("int8", 1 << 20, torch.bfloat16)
