"""One stage of the model: what the interpreter drives, and the one that really computes.

A stage keeps as little as it can between its ops. From F to I: the autograd graph and, of its
output, only the edge into that graph. From I to W: the inputs and output gradients of its linear
layers. Gradients accumulate per parameter in microbatch order, so no schedule changes a bit of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from crosspipe_ray.engine.split_backward import WeightGradientStore, defer_linear_gradients
from crosspipe_ray.ops import WHOLE, Part
from crosspipe_ray.training.model import DecoderPart, next_token_loss


class Stage(Protocol):
    """The three ops of a stage, each once per microbatch and step, each kind in microbatch order.

    ``splits_backward`` is False where ``backward_input`` does the whole backward pass and
    ``backward_weight`` nothing.
    """

    splits_backward: bool

    def forward(self, microbatch: int, activation: Tensor | None) -> Tensor | None:
        """F. None goes into the first stage, which reads its own tokens; None leaves the last."""

    def backward_input(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """I. None goes into the last stage, which has the loss; None leaves the first."""

    def backward_weight(self, microbatch: int, part: Part = WHOLE) -> None:
        """W, or a part of it; a microbatch's parts come in order."""

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """B: I, then W."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A microbatch between F and I; the edge is None where nothing has to flow back."""

    activation: Tensor | None
    edge: GradientEdge | None


class ModelStage:
    """A stage that runs a torch module, any that maps one tensor to one tensor.

    Its linear layers are turned into deferred ones in place (see ``split_backward``).

    Args:
        module: the stage's part of the model, on its device.
        is_first: it reads its inputs with ``load_inputs``; nothing is received.
        is_last: its output and ``load_labels`` go into ``loss``; nothing is sent.
        num_microbatches: in a step; each loss counts 1 / num_microbatches for the gradient.
        load_inputs: microbatch -> the module's input, on its device. Owners set it anew for each
            step.
        load_labels: microbatch -> labels for the loss, on its device. Owners set it anew for each
            step.
        loss: (output, labels) -> mean loss, a 0-dim tensor.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        is_first: bool,
        is_last: bool,
        num_microbatches: int,
        load_inputs: Callable[[int], Tensor] | None = None,
        load_labels: Callable[[int], Tensor] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = next_token_loss,
    ) -> None:
        self.module = module
        self.is_first = is_first
        self.is_last = is_last
        self.num_microbatches = num_microbatches
        self.load_inputs = load_inputs
        self.load_labels = load_labels
        self.store = WeightGradientStore()
        self._deferred = defer_linear_gradients(module, self.store)
        self.splits_backward = bool(self._deferred)
        self._loss = loss
        self._losses: dict[int, Tensor] = {}
        self._in_flight: dict[int, _InFlight] = {}

    def forward(self, microbatch: int, activation: Tensor | None) -> Tensor | None:
        """F: the output for the next stage, or on the last stage None (the loss is kept)."""
        inputs = self._inputs(microbatch, activation)
        if not self.is_first:
            inputs = inputs.detach().requires_grad_()
        output = self.module(inputs)
        if self.is_last:
            output = self._loss(output, self._labels(microbatch))
            self._losses[microbatch] = output.detach()
        edge = get_gradient_edge(output) if output.requires_grad else None
        self._in_flight[microbatch] = _InFlight(None if self.is_first else inputs, edge)
        return None if self.is_last else output.detach()

    def backward_input(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """I: the gradient for the previous stage, or on the first stage None; frees the graph.

        Parameters outside of deferred linear layers get their gradient here.
        """
        saved = self._in_flight.pop(microbatch)
        if self.is_last:
            gradient = torch.ones_like(self._losses[microbatch]) / self.num_microbatches
        with self.store.collect(microbatch):
            if saved.edge is not None:
                torch.autograd.backward(saved.edge, gradient)
        return None if saved.activation is None else saved.activation.grad

    def backward_weight(self, microbatch: int, part: Part = WHOLE) -> None:
        """W: adds the gradients of the deferred linear layers; frees what I kept for it.

        A part does its share of the layers.
        """
        self.store.accumulate(microbatch, part)

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """B: I, then W."""
        input_gradient = self.backward_input(microbatch, gradient)
        self.backward_weight(microbatch)
        return input_gradient

    @torch.no_grad()
    def evaluate(self, microbatch: int, activation: Tensor | None) -> Tensor:
        """F without a gradient: the output for the next stage, or on the last stage the loss."""
        output: Tensor = self.module(self._inputs(microbatch, activation))
        return self._loss(output, self._labels(microbatch)) if self.is_last else output

    @property
    def losses(self) -> tuple[float, ...]:
        """Unscaled loss of each microbatch, in their order; reading it waits for the device."""
        return tuple(self._losses[microbatch].item() for microbatch in sorted(self._losses))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What this stage trains and saves, under the names of the whole model."""
        return self.module.named_parameters()

    def zero_gradients(self) -> None:
        """Makes ready for a step: no gradients, no losses, nothing left of an aborted one."""
        self.module.zero_grad(set_to_none=True)
        for layer in self._deferred:
            layer.weight.grad = None  # a tied head's weight is no parameter of the module
        self.store.clear()
        self._losses.clear()
        self._in_flight.clear()

    def _inputs(self, microbatch: int, activation: Tensor | None) -> Tensor:
        if not self.is_first:
            assert activation is not None, "only the first stage reads its own inputs"
            return activation
        assert self.load_inputs is not None, "the first stage needs load_inputs"
        return self.load_inputs(microbatch)

    def _labels(self, microbatch: int) -> Tensor:
        assert self.load_labels is not None, "the last stage needs load_labels"
        return self.load_labels(microbatch)


class TiedHead:
    """The head's weight as a second face of the embedding's: same storage, a gradient of its own.

    Plain autograd adds both gradients to one tensor, microbatch by microbatch. In a pipeline the
    embedding's come in the first stage's I and the head's in the last stage's W, in an order that
    the schedule decides. So each accumulates by itself, and :meth:`fold_gradient` adds the head's
    to the embedding's once per step: the sum is the same for every schedule (and differs from plain
    autograd's by rounding only).
    """

    def __init__(self, embedding: nn.Embedding, head: nn.Linear) -> None:
        self._embedding = embedding
        self._head = head

    def fold_gradient(self) -> None:
        """Adds the head's gradient to the embedding's; after the last W, before the norm."""
        gradient, self._head.weight.grad = self._head.weight.grad, None
        if gradient is None:
            return
        if self._embedding.weight.grad is None:
            self._embedding.weight.grad = gradient
        else:
            self._embedding.weight.grad.add_(gradient)


def tie(first_module: nn.Module, last_module: nn.Module) -> TiedHead:
    """Lets the head of a decoder's last part use the embedding of its first; both in one process.

    The head's weight is no parameter of its module any more: not for the optimizer, the gradient
    norm, or a checkpoint. Both may be one module.
    """
    assert isinstance(first_module, DecoderPart)
    assert isinstance(last_module, DecoderPart)
    embedding, head = first_module.model.embed_tokens, last_module.lm_head
    assert embedding is not None
    assert head is not None
    del head.weight
    head.weight = embedding.weight.detach().requires_grad_()
    return TiedHead(embedding, head)
