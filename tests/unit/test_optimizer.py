from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from crosspipe_ray.config import TrainingConfig
from crosspipe_ray.training.optimizer import (
    build_optimizer,
    clip_factor,
    global_norm,
    learning_rate,
    scale_gradients,
    set_learning_rate,
    squared_norms,
)

CONFIG = TrainingConfig(
    num_steps=100,
    batch_size=8,
    num_microbatches=4,
    learning_rate=2e-3,
    num_warmup_steps=10,
    final_learning_rate_ratio=0.1,
)


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8, bias=False))
    model(torch.randn(4, 16)).square().sum().backward()
    return model


def test_learning_rate_warms_up_and_ends_at_the_ratio() -> None:
    rates = [learning_rate(step, CONFIG) for step in range(100)]

    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == rates[10] == 2e-3
    assert rates[99] == pytest.approx(2e-4)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(1000, CONFIG) == pytest.approx(2e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_learning_rate_of_a_run_no_longer_than_its_warmup(num_steps: int) -> None:
    config = CONFIG.model_copy(update={"num_steps": num_steps})

    assert all(0 < learning_rate(step, config) <= 2e-3 for step in range(num_steps + 1))


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(model.named_parameters(), CONFIG)
    set_learning_rate(optimizer, 0.5)

    optimizer.step()

    left = [parameter.flatten()[0].item() for parameter in model.parameters()]
    assert left == pytest.approx([1 - 0.5 * CONFIG.weight_decay, 1.0, 1.0, 1.0])


def test_a_step_does_not_depend_on_which_parameters_are_together() -> None:
    together, apart = model_with_gradients(), model_with_gradients()
    build_optimizer(together.named_parameters(), CONFIG).step()
    for part in apart.children():
        build_optimizer(part.named_parameters(), CONFIG).step()

    assert all(map(torch.equal, together.parameters(), apart.parameters()))


def test_a_rank_with_norms_only_or_without_parameters_has_an_optimizer_too() -> None:
    assert len(build_optimizer(nn.LayerNorm(4).named_parameters(), CONFIG).param_groups) == 1


def test_global_norm_is_that_of_torch() -> None:
    model = model_with_gradients()

    norm = global_norm(squared_norms(model.parameters()))

    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
    assert norm == pytest.approx(expected.item(), rel=1e-6)


def test_global_norm_is_the_same_for_every_partition_and_order() -> None:
    model = model_with_gradients()
    squared = squared_norms(model.parameters())
    by_part = [norm for part in model.children() for norm in squared_norms(part.parameters())]
    shuffled = random.Random(0).sample(squared, len(squared))

    assert by_part == squared
    assert global_norm(shuffled) == global_norm(squared)


def test_clipping_brings_the_norm_down_to_the_limit_and_never_up() -> None:
    model = model_with_gradients()
    squared = squared_norms(model.parameters())
    norm = global_norm(squared)

    assert clip_factor(squared, 2 * norm) == 1.0
    assert clip_factor(squared, None) == 1.0
    scale_gradients(model.parameters(), clip_factor(squared, norm / 3))
    clipped = global_norm(squared_norms(model.parameters()))
    assert clipped == pytest.approx(norm / 3, rel=1e-4)


def test_parameters_without_gradients_count_nothing() -> None:
    layer = nn.Linear(2, 2)

    assert squared_norms(layer.parameters()) == [0.0, 0.0]
    assert squared_norms([]) == []
    scale_gradients(layer.parameters(), 0.5)
