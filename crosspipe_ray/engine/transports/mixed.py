"""Several transports as one: each directed pair of ranks has its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from crosspipe_ray.engine.transports.base import Handle, Transport
from crosspipe_ray.errors import RunError


class MixedTransport(Transport):
    """Hands each message to the transport of its lane.

    Lanes stay independent, since those of each transport are: nothing is ordered between them.

    Args:
        lanes: by (src, dst), for every pair that this rank is in; the same choice at both ends.
            Closed and aborted together with this one.
        rank: of this end.
        num_ranks: of the whole run.
    """

    def __init__(
        self, lanes: Mapping[tuple[int, int], Transport], *, rank: int, num_ranks: int
    ) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self._lanes = dict(lanes)
        self._parts = list(dict.fromkeys(lanes.values()))

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``."""
        self.payload(tensor, peer=peer, tag=tag)  # refuses a peer that has no lane
        return self._lanes[self.rank, peer].isend(tensor, peer=peer, tag=tag)

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``."""
        self.payload(into, peer=peer, tag=tag)
        return self._lanes[peer, self.rank].irecv(into, peer=peer, tag=tag)

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        for part in self._parts:
            part.abort(reason)

    def close(self) -> None:
        """As ``Transport.close``; a part that does not close leaves no other one open."""
        errors = []
        for part in self._parts:
            try:
                part.close()
            except RunError as error:
                errors.append(error)
        if errors:
            raise errors[0]
