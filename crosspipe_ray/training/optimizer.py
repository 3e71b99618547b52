"""AdamW, its learning rate and the gradient norm, the same for every cut of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from crosspipe_ray.config import TrainingConfig


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TrainingConfig
) -> torch.optim.AdamW:
    """AdamW over a rank's parameters; weight decay for matrices only, not for norms.

    Each parameter is updated by itself (``foreach=False``), so the cut of the model changes
    nothing.
    """
    parameters = [parameter for _, parameter in named_parameters]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        foreach=False,
        fused=False,
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step (from 0): linear warmup, then a cosine that ends on the last step.

    >>> config = TrainingConfig(num_steps=11, batch_size=1, num_microbatches=1, learning_rate=1.0,
    ...                         num_warmup_steps=2, final_learning_rate_ratio=0.1)
    >>> [round(learning_rate(step, config), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    num_decay_steps = max(config.num_steps - 1 - config.num_warmup_steps, 1)
    progress = min((step - config.num_warmup_steps) / num_decay_steps, 1.0)
    floor = config.final_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The rate of the next ``optimizer.step()``."""
    for group in optimizer.param_groups:
        group["lr"] = value


def squared_norms(parameters: Iterable[nn.Parameter]) -> list[float]:
    """Squared L2 norm of each parameter's gradient, summed in float64; 0 where there is none.

    Waits for the device once.
    """
    norms = [
        torch.zeros((), dtype=torch.float64, device=parameter.device)
        if parameter.grad is None
        else torch.linalg.vector_norm(parameter.grad, dtype=torch.float64).square()
        for parameter in parameters
    ]
    values: list[float] = torch.stack(norms).tolist() if norms else []
    return values


def global_norm(squared: Sequence[float]) -> float:
    """Norm of the whole gradient from the squared norms of all parameters, of all ranks.

    ``fsum`` rounds once, so not even the order of the parameters matters.
    """
    return math.sqrt(math.fsum(squared))


def clip_factor(squared: Sequence[float], max_norm: float | None) -> float:
    """The factor for every gradient that keeps the global norm at most ``max_norm``.

    Args:
        squared: squared norms of all parameters, of all ranks.
        max_norm: None means no clipping.
    """
    if max_norm is None:
        return 1.0
    return min(1.0, max_norm / (global_norm(squared) + 1e-6))


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies every gradient in place; a factor of 1 touches nothing."""
    if factor == 1.0:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
