"""What carries the messages of a link: a transport and, over streams, so many connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

TransportName = Literal["collective", "object_store", "streams"]
TransportWish = Literal["auto", "collective", "object_store", "streams"]

# Fills a link of 50 ms and 1 Gbit/s with the buffers that systems come with (docs/transports.md).
DEFAULT_NUM_STREAMS = 8
MAX_STREAMS = 64


@dataclass(frozen=True, slots=True)
class Carrier:
    """How the messages of one directed pair of ranks travel.

    >>> str(Carrier()), str(Carrier("streams", 4))
    ('collective', 'streams x 4')
    """

    transport: TransportName = "collective"
    num_streams: int = 1

    def __str__(self) -> str:
        if self.transport == "streams":
            return f"{self.transport} x {self.num_streams}"
        return self.transport


@dataclass(frozen=True, slots=True)
class Wish:
    """What the configuration asks of a link: ``auto`` and None leave it to what was measured."""

    transport: TransportWish = "collective"
    num_streams: int | None = None

    def allows(self, carrier: Carrier) -> bool:
        """Whether this carrier will do."""
        if self.transport not in ("auto", carrier.transport):
            return False
        is_free = self.num_streams is None or carrier.transport != "streams"
        return is_free or carrier.num_streams == self.num_streams

    @property
    def unmeasured(self) -> Carrier:
        """What to use where nothing was measured."""
        if self.transport == "streams":
            return Carrier("streams", self.num_streams or DEFAULT_NUM_STREAMS)
        return Carrier("collective" if self.transport == "auto" else self.transport)

    def __str__(self) -> str:
        if self.transport == "auto":
            return "any transport"
        many = "" if self.num_streams is None else f" x {self.num_streams}"
        return self.transport + many * (self.transport == "streams")


Carriers = Mapping[tuple[int, int], Carrier]


def uniform(num_ranks: int, carrier: Carrier) -> Carriers:
    """One carrier for every directed pair of ranks."""
    return dict.fromkeys(permutations(range(num_ranks), 2), carrier)
