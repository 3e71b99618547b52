"""CUDA tensors over a transport of CPU tensors: through pinned memory of the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crosspipe_ray.engine.transports.base import Handle, Transport


class StagedTransport(Transport):
    """Copies what is sent to the host first, and what is received to its tensor in ``wait``.

    A copy holds up its caller: pinned memory moves at the speed of the GPU's bus, which is an order
    of magnitude above that of the links that such a transport is for.

    Args:
        inner: carries the copies; closed and aborted together with this one.
    """

    def __init__(self, inner: Transport) -> None:
        self.rank = inner.rank
        self.num_ranks = inner.num_ranks
        self._inner = inner

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``, once the tensor is in host memory."""
        payload = self.payload(tensor, peer=peer, tag=tag)
        staged = _on_host(payload)
        staged.copy_(payload)
        return self._inner.isend(staged, peer=peer, tag=tag)

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``; ``wait`` also fills the tensor, ``done_ns`` is the arrival."""
        payload = self.payload(into, peer=peer, tag=tag)
        staged = _on_host(payload)
        return _StagedReceive(
            self._inner.irecv(staged, peer=peer, tag=tag), staged=staged, into=payload
        )

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        self._inner.abort(reason)

    def close(self) -> None:
        """As ``Transport.close``."""
        self._inner.close()


@dataclass(frozen=True, slots=True)
class _StagedReceive(Handle):
    arrival: Handle
    staged: torch.Tensor
    into: torch.Tensor

    @property
    def done_ns(self) -> int | None:
        return self.arrival.done_ns

    def wait(self, *, timeout_s: float) -> None:
        self.arrival.wait(timeout_s=timeout_s)
        self.into.copy_(self.staged)


def _on_host(payload: torch.Tensor) -> torch.Tensor:
    """Pinned where there is a GPU to copy from or to."""
    return torch.empty(payload.shape, dtype=payload.dtype, device="cpu", pin_memory=payload.is_cuda)
