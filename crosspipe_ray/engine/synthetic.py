"""Stages that compute nothing but last as long as the problem says: to rehearse a plan anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from crosspipe_ray.costs import StageCosts
from crosspipe_ray.engine import clock
from crosspipe_ray.errors import RunError
from crosspipe_ray.ops import WHOLE, Kind, Part
from crosspipe_ray.sub_blocks import share_of

_MARK_BYTES = 4


class SyntheticStage:
    """Sleeps through its ops; its tensors are real in size, and marked with their microbatch.

    Args:
        costs: the stage's times and message sizes.
    """

    splits_backward = True

    def __init__(self, costs: StageCosts) -> None:
        self._costs = costs

    def forward(self, microbatch: int, activation: Tensor | None) -> Tensor | None:
        """F: lasts ``forward_us``."""
        self._spend(Kind.F, microbatch, activation)
        return _payload(self._costs.output.num_bytes, microbatch) if self._costs.output else None

    def backward_input(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """I: lasts ``backward_input_us``."""
        self._spend(Kind.I, microbatch, gradient)
        return self._input_gradient(microbatch)

    def backward_weight(self, microbatch: int, part: Part = WHOLE) -> None:
        """W: lasts ``backward_weight_us``, or the part's share of it."""
        self._spend(Kind.W, microbatch, None, part)

    def backward(self, microbatch: int, gradient: Tensor | None) -> Tensor | None:
        """B: lasts both times."""
        self._spend(Kind.B, microbatch, gradient)
        return self._input_gradient(microbatch)

    def _input_gradient(self, microbatch: int) -> Tensor | None:
        gradient = self._costs.gradient
        return _payload(gradient.num_bytes, microbatch) if gradient else None

    def _spend(
        self, kind: Kind, microbatch: int, received: Tensor | None, part: Part = WHOLE
    ) -> None:
        overhead_ns = self._costs.overhead_ns
        work_ns = share_of(self._costs.duration_ns[kind] - overhead_ns, part)
        end_ns = clock.now_ns() + overhead_ns + work_ns
        _check_mark(kind, microbatch, received)
        clock.sleep_until(end_ns)


def _payload(num_bytes: int, microbatch: int) -> Tensor:
    payload = torch.empty(num_bytes, dtype=torch.uint8)
    if num_bytes >= _MARK_BYTES:
        payload[:_MARK_BYTES].view(torch.int32)[0] = microbatch
    return payload


def _check_mark(kind: Kind, microbatch: int, received: Tensor | None) -> None:
    """Refuses a message of another microbatch: the order of a lane was broken."""
    if received is not None and received.numel() >= _MARK_BYTES:
        mark = int(received[:_MARK_BYTES].view(torch.int32)[0])
        if mark != microbatch:
            raise RunError(f"{kind.name}{microbatch} was given the message of microbatch {mark}")
