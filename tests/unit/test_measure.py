from __future__ import annotations

import torch
from torch import Tensor, nn

from crosspipe_ray.config import ModelConfig
from crosspipe_ray.engine.measure import profile_layers, profile_stage
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.training.model import build_layers

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
)
TOKENS = 2 * 16
ACTIVATION_BYTES = TOKENS * 32 * 4


def middle(module: nn.Module) -> ModelStage:
    return ModelStage(module, is_first=False, is_last=False, num_microbatches=1)


def test_bytes_of_a_module_that_can_be_counted_by_hand() -> None:
    # Linear saves its input, ReLU its output; W needs that input and the gradient that leaves ReLU.
    stage = middle(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

    costs = profile_stage(stage, torch.randn(4, 8))

    assert costs.activation_bytes == 2 * 4 * 8 * 4
    assert costs.freed_by_backward_input_bytes == 0
    assert costs.output_bytes == 4 * 8 * 4
    assert costs.weight_bytes == (8 * 8 + 8) * 4
    assert costs.optimizer_bytes == 3 * costs.weight_bytes


def test_a_module_without_linear_layers_gives_everything_back_in_i() -> None:
    costs = profile_stage(middle(nn.LayerNorm(8)), torch.randn(4, 8))

    # input, mean and reciprocal standard deviation
    assert costs.activation_bytes == costs.freed_by_backward_input_bytes == (4 * 8 + 4 + 4) * 4


def test_what_microbatches_share_is_not_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.randn(4, 8)
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.table * self.weight

    costs = profile_stage(middle(Scaled()), torch.randn(4, 8))

    # the received input, and its product with the table
    assert costs.activation_bytes == 2 * 4 * 8 * 4


def test_layers_of_a_decoder() -> None:
    embedding, block, head = profile_layers(
        CONFIG, microbatch_size=2, sequence_length=16, num_microbatches=3
    )

    assert embedding.activation_bytes == TOKENS * 8  # token ids
    assert embedding.output_bytes == block.output_bytes == ACTIVATION_BYTES
    assert head.output_bytes == 0
    inputs = 1 + 1 + 1 + 3  # both norms, attention, gate times up
    gradients = 1 + 0.5 + 0.5 + 1 + 3 + 3 + 1  # q, k, v, o, gate, up, down
    stash = (inputs + gradients) * ACTIVATION_BYTES
    assert block.activation_bytes - block.freed_by_backward_input_bytes == stash
    assert block.activation_bytes > stash
    assert embedding.weight_bytes == 64 * 32 * 4
    assert head.weight_bytes == (64 * 32 + 32) * 4
    for costs in (embedding, block, head):
        assert costs.forward_us > 0
        assert costs.backward_input_us > 0
        assert min(costs.dispersion) >= 0
        assert costs.op_overhead_us == block.op_overhead_us
    assert 0 <= block.op_overhead_us < block.forward_us + block.backward_input_us


def test_codecs_are_measured_where_they_are_asked_for() -> None:
    costs = profile_layers(
        CONFIG, microbatch_size=2, sequence_length=16, num_microbatches=2, codecs=("bf16", "int8")
    )
    for layer in costs:
        assert [rates.kind for rates in layer.codecs] == ["bf16", "int8"]
        assert all(r.encode_bytes_per_s > 0 and r.decode_bytes_per_s > 0 for r in layer.codecs)


def test_costs_of_layers_add_up_to_those_of_a_stage() -> None:
    _, block, _ = profile_layers(CONFIG, microbatch_size=2, sequence_length=16)
    stage = middle(build_layers(CONFIG, 1, 4, seed=0))
    whole = profile_stage(stage, torch.randn(2, 16, 32))

    assert whole.activation_bytes == 3 * block.activation_bytes
    assert whole.freed_by_backward_input_bytes == 3 * block.freed_by_backward_input_bytes
    assert whole.weight_bytes == 3 * block.weight_bytes
    assert all(parameter.grad is None for _, parameter in stage.named_parameters())
