"""Which messages of a rank go through a codec, and the error feedback that they leave behind."""

from __future__ import annotations

from torch import Tensor

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.engine.messages import MessageSpec
from crosspipe_ray.engine.tensor_codecs import applies, decode, encode, encoded_spec, new_residual
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.problem import Problem


class MessageCodecs:
    """Encodes and decodes by the links of a problem; messages on other links pass unchanged.

    Gradients in int8 carry error feedback: one residual per stage that sends them, from each
    message to the next. A stage's gradients leave in the order of microbatches and steps, so the
    same placement gives the same bits under any schedule. Residuals are not in checkpoints: a
    resumed run starts without.

    Args:
        problem: of the plan; None: no codecs.
    """

    def __init__(self, problem: Problem | None = None) -> None:
        self._kinds: dict[tuple[int, Kind], CodecKind] = {}
        self._residuals: dict[int, Tensor] = {}
        for stage, costs in enumerate(stage_costs(problem) if problem else ()):
            for transfer in costs.transfers:
                if transfer.route and transfer.route.link.codec:
                    self._kinds[stage, transfer.kind] = transfer.route.link.codec.kind

    def encode(self, send: Op, tensor: Tensor) -> Tensor:
        """A message as it goes over its link."""
        kind = self._kind(send.stage, send.kind, MessageSpec.of(tensor))
        if kind is None:
            return tensor
        if kind != "int8" or send.kind is not Kind.SEND_B:
            return encode(tensor, kind)
        residual = self._residuals.get(send.stage)
        if residual is None:
            residual = new_residual(tensor.numel(), tensor.device)
            self._residuals[send.stage] = residual
        return encode(tensor, kind, residual=residual)

    def posted(self, receive: Op, spec: MessageSpec) -> MessageSpec:
        """What to receive into, for a message that is as in ``spec`` before its codec."""
        kind = self._kind_of_receive(receive, spec)
        return spec if kind is None else MessageSpec(*encoded_spec(kind, spec.shape))

    def decode(self, receive: Op, received: Tensor, spec: MessageSpec) -> Tensor:
        """The message as its op takes it."""
        kind = self._kind_of_receive(receive, spec)
        if kind is None:
            return received
        return decode(received, kind, shape=spec.shape, dtype=spec.dtype)

    def _kind_of_receive(self, receive: Op, spec: MessageSpec) -> CodecKind | None:
        if receive.kind is Kind.RECV_F:
            return self._kind(receive.stage - 1, Kind.SEND_F, spec)
        return self._kind(receive.stage + 1, Kind.SEND_B, spec)

    def _kind(self, sender: int, send: Kind, spec: MessageSpec) -> CodecKind | None:
        kind = self._kinds.get((sender, send))
        return kind if kind and applies(kind, spec.num_bytes, spec.dtype) else None
