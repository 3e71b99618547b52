"""One rank of a training run: its stages, its share of the optimizer, its part of every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from crosspipe_ray.config import Config
from crosspipe_ray.engine import clock
from crosspipe_ray.engine.evaluation import Evaluation
from crosspipe_ray.engine.gradient_norm import NormExchange
from crosspipe_ray.engine.instructions import instructions
from crosspipe_ray.engine.interpreter import Interpreter
from crosspipe_ray.engine.message_codecs import MessageCodecs
from crosspipe_ray.engine.messages import MessageSpec
from crosspipe_ray.engine.stage import ModelStage, TiedHead, tie
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.measured import StepReport
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Program
from crosspipe_ray.training.data import Batches, TokenDataset
from crosspipe_ray.training.model import activation_shape, build_layers
from crosspipe_ray.training.optimizer import (
    build_optimizer,
    clip_factor,
    global_norm,
    learning_rate,
    scale_gradients,
    set_learning_rate,
    squared_norms,
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one rank has to do; the same for a Ray actor, a torchrun process or a thread.

    Attributes:
        config: of the run.
        problem: the plan's, with stages that name their layers.
        program: of a training step.
        evaluation: forwards only, over the held-out microbatches; None: no evaluation.
    """

    config: Config
    problem: Problem
    program: Program
    evaluation: Program | None


class TrainingRank:
    """Runs one rank's programs with the real model.

    Args:
        assignment: this rank's.
        transport: to the other ranks; None where there are none.
        device: of weights and activations.
    """

    def __init__(
        self, assignment: Assignment, transport: Transport | None, *, device: torch.device
    ) -> None:
        config = assignment.config
        torch.set_num_threads(config.training.num_threads)
        self._config = config
        self._stages = _build_stages(assignment, device)
        self._batches = _open_batches(assignment, device)
        self._tied = _tie(assignment, self._stages)
        # Listed after tying: a tied head is no parameter of its own.
        self._parameters = dict(
            named for stage in self._stages.values() for named in stage.named_parameters()
        )
        self._optimizer = build_optimizer(self._parameters.items(), config.training)
        self._program = instructions(
            assignment.program, num_microbatches=config.training.num_microbatches
        )
        spec = _message_spec(config)
        interpreter = partial(
            Interpreter,
            assignment.program.rank,
            transport=transport,
            message_spec=lambda _: spec,
            device=device,
            timeout_s=config.cluster.timeout_s,
            codecs=MessageCodecs(assignment.problem),
        )
        self._interpreter = interpreter(stages=self._stages)
        self._norms = NormExchange(
            transport, len(self._parameters), timeout_s=config.cluster.timeout_s
        )
        self._evaluation = (
            Evaluation(config, assignment.evaluation, self._stages, interpreter, device=device)
            if assignment.evaluation
            else None
        )

    def step(self, index: int, *, is_last: bool = True) -> StepReport:
        """One optimizer step: the plan's ops, then norm, clipping and AdamW.

        Args:
            index: of the step.
            is_last: nothing but another step follows unless it is the last.
        """
        for stage in self._stages.values():
            stage.zero_gradients()
            if self._batches is not None:
                stage.load_inputs = partial(self._batches.inputs, index)
                stage.load_labels = partial(self._batches.labels, index)
        record = self._interpreter.run(self._program)
        if self._tied is not None:
            self._tied.fold_gradient()
        exchange = self._norms.start(squared_norms(self._parameters.values()))
        if not is_last:
            self._interpreter.post_ahead(self._program)
        squared = exchange()
        exchanged_ns = clock.now_ns()
        self._update(index, squared)
        return StepReport(
            step=index,
            record=record,
            losses=tuple(loss for stage in self._stages.values() for loss in stage.losses),
            gradient_norm=global_norm(squared),
            exchanged_ns=exchanged_ns,
            updated_ns=clock.now_ns(),
        )

    def evaluate(self) -> tuple[float, ...]:
        """Held-out loss of each microbatch, on the rank with the last stage; else empty."""
        return self._evaluation.run() if self._evaluation else ()

    def state_dict(self) -> dict[str, Tensor]:
        """The rank's weights on the host, one entry per parameter name."""
        return {name: parameter.detach().cpu() for name, parameter in self._parameters.items()}

    @property
    def dataset_digest(self) -> str | None:
        """Digest of the tokens that this rank reads; None if it reads none."""
        return self._batches.dataset.digest if self._batches else None

    @property
    def unsplit_stages(self) -> tuple[int, ...]:
        """Stages without a linear layer: their I does the whole backward pass, their W nothing."""
        return tuple(index for index, stage in self._stages.items() if not stage.splits_backward)

    def _update(self, index: int, squared: list[float]) -> None:
        training = self._config.training
        factor = clip_factor(squared, training.gradient_clip_norm)
        scale_gradients(self._parameters.values(), factor)
        set_learning_rate(self._optimizer, learning_rate(index, training))
        self._optimizer.step()


def _build_stages(assignment: Assignment, device: torch.device) -> dict[int, ModelStage]:
    """The rank's stages; every parameter starts the same whatever the placement."""
    config, problem = assignment.config, assignment.problem
    return {
        index: ModelStage(
            _build_module(config, problem, index, device),
            is_first=index == 0,
            is_last=index == len(problem.stages) - 1,
            num_microbatches=config.training.num_microbatches,
        )
        for index in problem.stages_of_rank[assignment.program.rank]
    }


def _build_module(config: Config, problem: Problem, index: int, device: torch.device) -> nn.Module:
    layers = problem.stages[index].layers
    assert layers is not None, "a plan to train from names the layers of its stages"
    return build_layers(
        config.model,
        *layers,
        seed=config.seed,
        dtype=getattr(torch, config.training.dtype),
        device=device,
    )


def _open_batches(assignment: Assignment, device: torch.device) -> Batches | None:
    """Training batches, where the rank has the first stage (inputs) or the last (labels)."""
    config = assignment.config
    ends = {0, len(assignment.problem.stages) - 1}
    if not ends & set(assignment.problem.stages_of_rank[assignment.program.rank]):
        return None
    data = config.data
    dataset = TokenDataset(data.path, split="train", sequence_length=data.sequence_length)
    return dataset.batches(
        batch_size=config.training.batch_size,
        num_microbatches=config.training.num_microbatches,
        seed=config.seed,
        device=device,
    )


def _tie(assignment: Assignment, stages: dict[int, ModelStage]) -> TiedHead | None:
    last = len(assignment.problem.stages) - 1
    if not assignment.config.model.tie_embeddings or not {0, last} & set(stages):
        return None
    assert {0, last} <= set(stages), "a tied model has its ends on one rank: checked before"
    return tie(stages[0].module, stages[last].module)


def _message_spec(config: Config) -> MessageSpec:
    """Activations and their gradients, at every border of stages."""
    shape = activation_shape(
        config.model,
        microbatch_size=config.training.microbatch_size,
        sequence_length=config.data.sequence_length,
    )
    return MessageSpec(tuple(shape), getattr(torch, config.training.dtype))
