"""What a stage really costs: it runs, and its times and bytes are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.config import ModelConfig
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.engine.tensor_codecs import decode, encode, new_residual
from crosspipe_ray.training.model import activation_shape, build_layers, required_vocab_size


@dataclass(frozen=True, slots=True)
class CodecRates:
    """How fast a codec is, in bytes before it; encoding counts with int8's error feedback."""

    kind: CodecKind
    encode_bytes_per_s: float
    decode_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """Costs of one stage or layer, per microbatch; the names are those of a problem's stages.

    Attributes:
        forward_us: median time of F.
        backward_input_us: median time of I; of the whole backward pass where it cannot be split.
        backward_weight_us: median time of W.
        activation_bytes: held from F until the end of the backward pass: what autograd saves or
            what W needs, whichever is more. Parameters do not count, nor does what all microbatches
            share.
        freed_by_backward_input_bytes: the part of it that I gives back.
        output_bytes: size of the activation that leaves; 0 where the loss is taken.
        weight_bytes: of the parameters.
        optimizer_bytes: gradients and both AdamW moments.
        dispersion: interquartile range of F + I + W over their median.
        codecs: of the activation that leaves.
    """

    forward_us: float
    backward_input_us: float
    backward_weight_us: float
    activation_bytes: int
    freed_by_backward_input_bytes: int
    output_bytes: int
    weight_bytes: int
    optimizer_bytes: int
    dispersion: float
    codecs: tuple[CodecRates, ...] = ()


def profile_layers(
    config: ModelConfig,
    *,
    microbatch_size: int,
    sequence_length: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    num_microbatches: int = 8,
    codecs: Sequence[CodecKind] = (),
) -> list[LayerCosts]:
    """Measures the distinct layers of a decoder: [embedding, block, norm and head].

    Pipeline layers ``1 .. num_layers`` all cost what the block does.

    Args:
        config: the model; only one block of it is built.
        microbatch_size: sequences.
        sequence_length: tokens per sequence.
        dtype: of weights and activations.
        device: where to measure.
        num_microbatches: to take the median over.
        codecs: to measure as well.
    """
    last = config.num_pipeline_layers - 1
    shape = activation_shape(
        config, microbatch_size=microbatch_size, sequence_length=sequence_length
    )
    tokens = torch.randint(required_vocab_size(config), shape[:2], device=device)
    costs = []
    for layer in (0, 1, last):
        stage = ModelStage(
            build_layers(config, layer, layer + 1, seed=0, dtype=dtype, device=device),
            is_first=layer == 0,
            is_last=layer == last,
            num_microbatches=1,
            load_inputs=lambda _: tokens.clone(),
            load_labels=lambda _: tokens.clone(),
        )
        activation = torch.randn(shape, dtype=dtype, device=device)
        measured = profile_stage(stage, activation, num_microbatches=num_microbatches)
        rates = tuple(_codec_rates(kind, activation, num_microbatches) for kind in codecs)
        costs.append(replace(measured, codecs=rates))
    return costs


def profile_stage(
    stage: ModelStage, activation: Tensor, *, num_warmup: int = 2, num_microbatches: int = 8
) -> LayerCosts:
    """Measures a stage; its gradients are cleared before and after.

    Args:
        stage: reads its own inputs and labels where it is first or last.
        activation: what it would receive, and the shape of what it sends.
        num_warmup: microbatches that are not counted.
        num_microbatches: to take the median over.
    """
    stage.zero_gradients()
    times = [_run_once(stage, index, activation) for index in range(num_warmup + num_microbatches)]
    forward, backward_input, backward_weight = zip(*times[num_warmup:], strict=True)
    saved_bytes, stash_bytes = _measure_bytes(stage, activation)
    stage.zero_gradients()
    activation_bytes = max(saved_bytes, stash_bytes)
    weight_bytes = sum(parameter.nbytes for _, parameter in stage.named_parameters())
    return LayerCosts(
        forward_us=median(forward),
        backward_input_us=median(backward_input),
        backward_weight_us=median(backward_weight),
        activation_bytes=activation_bytes,
        freed_by_backward_input_bytes=activation_bytes - stash_bytes,
        output_bytes=0 if stage.is_last else activation.nbytes,
        weight_bytes=weight_bytes,
        optimizer_bytes=3 * weight_bytes,
        dispersion=_dispersion([sum(row) for row in times[num_warmup:]]),
    )


def _codec_rates(kind: CodecKind, activation: Tensor, num_repeats: int) -> CodecRates:
    residual = new_residual(activation.numel(), activation.device)
    encoded = encode(activation, kind, residual=residual)
    shape, dtype, device = tuple(activation.shape), activation.dtype, activation.device
    ways: list[Callable[[], Tensor]] = [
        lambda: encode(activation, kind, residual=residual),
        lambda: decode(encoded, kind, shape=shape, dtype=dtype),
    ]
    times_us = [median(_time_us(way, device) for _ in range(num_repeats)) for way in ways]
    return CodecRates(kind, *(activation.nbytes / time_us * 1e6 for time_us in times_us))


def _run_once(stage: ModelStage, microbatch: int, activation: Tensor) -> tuple[float, float, float]:
    """Times of F, I and W in microseconds, one after the other as in the steady phase of a step."""
    return (
        _time_us(lambda: stage.forward(microbatch, activation), activation.device),
        _time_us(lambda: stage.backward_input(microbatch, activation), activation.device),
        _time_us(lambda: stage.backward_weight(microbatch), activation.device),
    )


def _time_us(run: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start_ns = time.perf_counter_ns()
    run()
    _synchronize(device)
    return (time.perf_counter_ns() - start_ns) / 1e3


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measure_bytes(stage: ModelStage, activation: Tensor) -> tuple[int, int]:
    """Bytes that one more microbatch holds between F and I, and between I and W.

    Two microbatches are in flight, and only what the second adds is counted: not the parameters,
    nor the tables that microbatches share.
    """
    shared = _storages(parameter for _, parameter in stage.named_parameters())
    saved = []
    for microbatch in (0, 1):
        received = activation.clone()
        kept = [] if stage.is_first else [received]
        with saved_tensors_hooks(_keep_in(kept), lambda tensor: tensor):
            stage.forward(microbatch, received)
        saved.append(_storages(kept))
    for microbatch in (0, 1):
        stage.backward_input(microbatch, activation)
    stash = _storages(stage.store.tensors(1))
    for microbatch in (0, 1):
        stage.backward_weight(microbatch)
    old = shared.keys() | saved[0].keys()
    return sum(size for key, size in saved[1].items() if key not in old), sum(stash.values())


def _keep_in(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return kept[-1]

    return pack


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each distinct storage behind the tensors."""
    return {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }


def _dispersion(totals: Sequence[float]) -> float:
    lower, _, upper = quantiles(totals, n=4)
    return (upper - lower) / median(totals)
