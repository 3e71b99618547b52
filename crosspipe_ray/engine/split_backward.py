"""The backward pass in two halves: input gradients (I), and later the linear layers' weights (W).

A linear layer's backward is two independent products. Only the input gradient has a neighbour
waiting for it; the weight gradient needs just the layer's input and its output gradient, which are
kept here until W (Zero Bubble Pipeline Parallelism, Qi et al. 2023, section 2). Both products are
the ones that autograd would take, and they are added per microbatch in the same order, so gradients
are bit-identical to plain autograd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from crosspipe_ray.ops import WHOLE, Part


class WeightGradientStore:
    """What W needs of each microbatch, from its I until its W."""

    def __init__(self) -> None:
        self._stashes: dict[int, dict[DeferredLinear, list[tuple[Tensor, Tensor]]]] = {}
        self._num_layers: dict[int, int] = {}  # of microbatches whose W has begun
        self._open: dict[DeferredLinear, list[tuple[Tensor, Tensor]]] | None = None

    @contextmanager
    def collect(self, microbatch: int) -> Iterator[None]:
        """Within it, a backward pass keeps what it defers under this microbatch."""
        self._open = self._stashes.setdefault(microbatch, {})
        try:
            yield
        finally:
            self._open = None

    def add(self, layer: DeferredLinear, inputs: Tensor, output_gradient: Tensor) -> None:
        """Keeps one use of a layer: [rows, in_features] and [rows, out_features], not copied."""
        if self._open is None:
            raise RuntimeError(
                "a deferred linear layer ran backward outside of WeightGradientStore.collect"
            )
        self._open.setdefault(layer, []).append((inputs.detach(), output_gradient))

    @torch.no_grad()
    def accumulate(self, microbatch: int, part: Part = WHOLE) -> None:
        """Adds the microbatch's weight gradients to ``.grad`` and forgets what it kept for them.

        Args:
            microbatch: whose parts come in order, and before those of the next one.
            part: of the layers.
        """
        stash = self._stashes[microbatch]
        if part.first == 0:
            self._num_layers[microbatch] = len(stash)
        num_layers = self._num_layers[microbatch]
        num_left = num_layers - num_layers * part.end // part.num_parts
        if part.end == part.num_parts:
            del self._stashes[microbatch], self._num_layers[microbatch]
        while len(stash) > num_left:
            layer, uses = stash.popitem()
            _accumulate(layer.weight, [gradient.t().mm(inputs) for inputs, gradient in uses])
            if layer.bias is not None:
                _accumulate(layer.bias, [gradient.sum(0) for _, gradient in uses])

    def tensors(self, microbatch: int) -> Iterator[Tensor]:
        """Everything kept for one microbatch; q, k and v share their input."""
        for uses in self._stashes[microbatch].values():
            for inputs, gradient in uses:
                yield inputs
                yield gradient

    def clear(self) -> None:
        """Forgets everything, as after an aborted step."""
        self._stashes.clear()
        self._num_layers.clear()


class DeferredLinear(nn.Linear):
    """An ``nn.Linear`` that leaves its parameters' gradients to a :class:`WeightGradientStore`."""

    store: WeightGradientStore

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name for it
        """What nn.Linear computes."""
        return _DeferredLinearFunction.apply(input, self.weight, self.bias, self)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves apply untyped


class _DeferredLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: DeferredLinear
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.layer = layer
        return functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        rows = output_gradient.reshape(-1, output_gradient.shape[-1])
        ctx.layer.store.add(ctx.layer, inputs.reshape(-1, inputs.shape[-1]), rows)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return rows.mm(weight).view(inputs.shape), None, None, None


def defer_linear_gradients(module: nn.Module, store: WeightGradientStore) -> list[DeferredLinear]:
    """Turns the linear layers of a module into deferred ones, in place; names and values stay.

    Taken are modules whose type is exactly ``nn.Linear`` (a subclass may compute something else),
    whose parameters are all trained, and belong to no other module: a shared parameter would
    collect gradients in I and in W, in an order that depends on the schedule. All others keep their
    whole backward in I.

    Returns:
        The layers that were turned; none means that the module's backward cannot be split.
    """
    owners = Counter(
        id(parameter) for owner in module.modules() for parameter in owner.parameters(recurse=False)
    )
    layers = [
        layer
        for layer in module.modules()
        if type(layer) is nn.Linear and _can_defer(layer, owners)
    ]
    deferred = []
    for layer in layers:
        layer.__class__ = DeferredLinear
        assert isinstance(layer, DeferredLinear)
        layer.store = store
        deferred.append(layer)
    return deferred


def _can_defer(layer: nn.Linear, owners: Counter[int]) -> bool:
    tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return all(
        tensor.is_leaf and tensor.requires_grad and owners[id(tensor)] <= 1 for tensor in tensors
    )


def _accumulate(parameter: Tensor, gradients: list[Tensor]) -> None:
    """Adds a microbatch's gradient; several uses of a layer are summed first, as autograd does."""
    total = gradients[0]
    for gradient in gradients[1:]:
        total = total + gradient
    if parameter.grad is None:
        parameter.grad = total
    else:
        parameter.grad.add_(total)
