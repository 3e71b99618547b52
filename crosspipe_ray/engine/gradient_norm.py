"""Exchanges what every rank knows of the gradient's norm, so that all clip by the same factor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from crosspipe_ray.engine.transports import Transport

_TAG = 0


class NormExchange:
    """All ranks' squared norms at every rank, in the order of ranks; costs one trip over each link.

    Values travel one by one, not summed: the sum of all of them is then the same for every cut of
    the model.

    Args:
        transport: to the other ranks; None where there are none.
        num_values: that this rank contributes, the same in every step.
        timeout_s: longest wait for one message.
    """

    def __init__(self, transport: Transport | None, num_values: int, *, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._counts = [num_values]
        counts = self._start([num_values], [1] * (transport.num_ranks if transport else 1))()
        self._counts = [int(count) for count in counts]

    def start(self, own: Sequence[float]) -> Callable[[], list[float]]:
        """Starts an exchange; the call that it returns waits for it.

        What is posted to the transport in between comes after it.

        Returns:
            Values of all ranks, rank 0's first.
        """
        return self._start(own, self._counts)

    def _start(self, own: Sequence[float], counts: Sequence[int]) -> Callable[[], list[float]]:
        transport = self._transport
        if transport is None:
            return lambda: list(own)
        mine = torch.tensor(own, dtype=torch.float64)
        peers = [rank for rank in range(transport.num_ranks) if rank != transport.rank]
        received = {peer: torch.empty(counts[peer], dtype=torch.float64) for peer in peers}
        handles = [transport.irecv(into, peer=peer, tag=_TAG) for peer, into in received.items()]
        handles += [transport.isend(mine, peer=peer, tag=_TAG) for peer in peers]
        received[transport.rank] = mine

        def wait() -> list[float]:
            for handle in handles:
                handle.wait(timeout_s=self._timeout_s)
            return [value for rank in sorted(received) for value in received[rank].tolist()]

        return wait
