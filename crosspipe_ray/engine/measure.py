"""What a stage really costs: it runs, and its times and bytes are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.config import ModelConfig
from crosspipe_ray.engine.codec_rates import CodecRates, codec_rates
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.engine.stopwatch import (
    Stopwatch,
    op_overhead_us,
    overhead_watches,
    run_in_turn,
)
from crosspipe_ray.training.model import activation_shape, build_layers, required_vocab_size

_NUM_WARMUP = 2


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """Costs of one stage or layer, per microbatch; the names are those of a problem's stages.

    Attributes:
        forward_us: median time of F, with the fixed cost of an op.
        backward_input_us: median time of I; of the whole backward pass where it cannot be split.
        backward_weight_us: median time of W.
        activation_bytes: held from F until the end of the backward pass: what autograd saves or
            what W needs, whichever is more. Parameters do not count, nor does what all microbatches
            share.
        freed_by_backward_input_bytes: the part of it that I gives back.
        output_bytes: size of the activation that leaves; 0 where the loss is taken.
        weight_bytes: of the parameters.
        optimizer_bytes: gradients and both AdamW moments.
        dispersion: of F, I and W: median absolute deviation over the median.
        op_overhead_us: the part of each time that is paid once per op, whatever is in its stage.
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
    dispersion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    op_overhead_us: float = 0.0
    codecs: tuple[CodecRates, ...] = ()


def profile_layers(
    config: ModelConfig,
    *,
    microbatch_size: int,
    sequence_length: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    num_microbatches: int = 8,
    least_s: float = 0.0,
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
        num_microbatches: at least so many, to take the median over.
        least_s: and for at least so long.
        codecs: to measure as well.
    """
    shape = activation_shape(
        config, microbatch_size=microbatch_size, sequence_length=sequence_length
    )
    activation = torch.randn(shape, dtype=dtype, device=device)
    layers = [
        Stopwatch(_layer(config, layer, activation), activation)
        for layer in (0, 1, config.num_pipeline_layers - 1)
    ]
    tiny = overhead_watches(dtype=dtype, device=device)
    run_in_turn(
        [*layers, *tiny],
        num_warmup=_NUM_WARMUP,
        num_microbatches=num_microbatches,
        least_s=least_s,
    )
    overhead_us = op_overhead_us(tiny)
    rates = tuple(codec_rates(kind, activation, num_repeats=num_microbatches) for kind in codecs)
    return [replace(_costs(layer), op_overhead_us=overhead_us, codecs=rates) for layer in layers]


def profile_stage(
    stage: ModelStage, activation: Tensor, *, num_microbatches: int = 8
) -> LayerCosts:
    """Measures a stage; its gradients are cleared before and after.

    Args:
        stage: reads its own inputs and labels where it is first or last.
        activation: what it would receive, and the shape of what it sends.
        num_microbatches: to take the median over.
    """
    watch = Stopwatch(stage, activation)
    run_in_turn([watch], num_warmup=_NUM_WARMUP, num_microbatches=num_microbatches, least_s=0.0)
    return _costs(watch)


def _layer(config: ModelConfig, layer: int, activation: Tensor) -> ModelStage:
    tokens = torch.randint(
        required_vocab_size(config), activation.shape[:2], device=activation.device
    )
    return ModelStage(
        build_layers(
            config, layer, layer + 1, seed=0, dtype=activation.dtype, device=activation.device
        ),
        is_first=layer == 0,
        is_last=layer == config.num_pipeline_layers - 1,
        num_microbatches=1,
        load_inputs=lambda _: tokens.clone(),
        load_labels=lambda _: tokens.clone(),
    )


def _costs(watch: Stopwatch) -> LayerCosts:
    stage, activation = watch.stage, watch.activation
    saved_bytes, stash_bytes = _measure_bytes(stage, activation)
    stage.zero_gradients()
    activation_bytes = max(saved_bytes, stash_bytes)
    weight_bytes = sum(parameter.nbytes for _, parameter in stage.named_parameters())
    return LayerCosts(
        *watch.medians,
        activation_bytes=activation_bytes,
        freed_by_backward_input_bytes=activation_bytes - stash_bytes,
        output_bytes=0 if stage.is_last else activation.nbytes,
        weight_bytes=weight_bytes,
        optimizer_bytes=3 * weight_bytes,
        dispersion=watch.dispersion,
    )


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
