"""Held-out loss: forwards only, through the same pipeline and links."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from crosspipe_ray.config import Config
from crosspipe_ray.engine.instructions import instructions
from crosspipe_ray.engine.interpreter import Interpreter
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.ops import WHOLE, Part
from crosspipe_ray.program import Program
from crosspipe_ray.training.data import TokenDataset


class Evaluation:
    """One rank's part of an evaluation; always over the same held-out microbatches.

    Args:
        config: of the run.
        program: F, SEND_F and RECV_F only.
        stages: those that train.
        interpreter: makes one for given stages.
        device: of the tokens.
    """

    def __init__(
        self,
        config: Config,
        program: Program,
        stages: Mapping[int, ModelStage],
        interpreter: Callable[..., Interpreter],
        *,
        device: torch.device,
    ) -> None:
        num_microbatches = config.training.num_evaluation_microbatches
        self._program = instructions(program, num_microbatches=num_microbatches)
        self._stages = stages
        self._adapters = {index: _EvaluatedStage(stage) for index, stage in stages.items()}
        self._interpreter = interpreter(stages=self._adapters)
        self._batches = None
        if any(stage.is_first or stage.is_last for stage in stages.values()):
            length = config.data.sequence_length
            dataset = TokenDataset(config.data.path, split="validation", sequence_length=length)
            self._batches = dataset.batches(
                batch_size=num_microbatches * config.training.microbatch_size,
                num_microbatches=num_microbatches,
                seed=config.seed,
                device=device,
            )

    def run(self) -> tuple[float, ...]:
        """Loss of each microbatch, on the rank with the last stage; else empty."""
        if self._batches is not None:
            for stage in self._stages.values():
                stage.load_inputs = partial(self._batches.inputs, 0)
                stage.load_labels = partial(self._batches.labels, 0)
        self._interpreter.run(self._program)
        return tuple(loss for adapter in self._adapters.values() for loss in adapter.take_losses())


class _EvaluatedStage:
    """Drives a stage's forward without a gradient."""

    splits_backward = False

    def __init__(self, stage: ModelStage) -> None:
        self._stage = stage
        self._losses: list[float] = []

    def forward(self, microbatch: int, activation: Tensor | None) -> Tensor | None:
        output = self._stage.evaluate(microbatch, activation)
        if not self._stage.is_last:
            return output
        self._losses.append(output.item())
        return None

    def backward_input(self, _microbatch: int, _gradient: Tensor | None) -> Tensor | None:
        raise AssertionError("an evaluation has no backward pass")

    def backward_weight(self, _microbatch: int, _part: Part = WHOLE) -> None:
        raise AssertionError("an evaluation has no backward pass")

    def backward(self, _microbatch: int, _gradient: Tensor | None) -> Tensor | None:
        raise AssertionError("an evaluation has no backward pass")

    def take_losses(self) -> list[float]:
        """Losses in microbatch order, once."""
        losses, self._losses = self._losses, []
        return losses
