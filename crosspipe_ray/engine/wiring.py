"""Builds the transport of one rank: for each directed pair of ranks exactly what the plan names.

All ranks build the same transports in the same order, also those that carry none of their own
lanes, and each connects in a fixed order: no two of them wait for each other. Lanes share nothing
once they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch.distributed.distributed_c10d import PrefixStore

from crosspipe_ray.carriers import Carriers, TransportName
from crosspipe_ray.engine.links import Emulation, emulated
from crosspipe_ray.engine.transports import (
    CollectiveTransport,
    MixedTransport,
    StagedTransport,
    Transport,
)
from crosspipe_ray.engine.transports.communicators import TCPStore, address_towards
from crosspipe_ray.engine.transports.streams import (
    Door,
    RunSecrets,
    StreamsTransport,
    exchange_addresses,
)
from crosspipe_ray.errors import ConfigError
from crosspipe_ray.program import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """How the ranks of a run reach each other; the same on all of them.

    Attributes:
        num_ranks: of the run.
        carriers: of every directed pair of ranks.
        lanes: pairs that exchange messages in the plan; the others exchange a few numbers a step.
        timeout_s: longest time to connect.
        secrets: of the run, where any pair uses streams.
        streams_port: rank r takes connections of streams at this port + r; None: any free one.
        emulation: None: links are as they are.
        name: another one for each wiring with one store.
    """

    num_ranks: int
    carriers: Carriers
    lanes: Sequence[Lane]
    timeout_s: float
    secrets: RunSecrets | None = field(default=None, repr=False)
    streams_port: int | None = None
    emulation: Emulation | None = None
    name: str = "run"

    @property
    def transports(self) -> set[TransportName]:
        """Those that carry any pair."""
        return {carrier.transport for carrier in self.carriers.values()}

    def pairs(self, transport: TransportName) -> list[Lane]:
        """What a transport carries."""
        return [pair for pair, each in self.carriers.items() if each.transport == transport]


def connected(
    wiring: Wiring,
    rank: int,
    *,
    store: TCPStore,
    device: torch.device,
    object_store: Callable[[], Transport] | None = None,
) -> Transport:
    """Connects a rank to the others, and warms every lane; all ranks do so at the same time.

    Args:
        wiring: of the run.
        rank: of this end.
        store: where the ranks meet.
        device: of the tensors in the lanes.
        object_store: makes this rank's transport over Ray; None: there is no Ray.

    Raises:
        ConfigError: a pair's transport is not to be had here.
        RunError: a rank did not connect in time.
    """
    with ExitStack() as undo:
        builders: dict[TransportName, Callable[[], Transport]] = {
            "collective": lambda: _collective(wiring, rank, store, device, undo),
            "streams": lambda: _streams(wiring, rank, store, device, undo),
            "object_store": object_store or _no_ray,
        }
        parts = {name: build() for name, build in builders.items() if name in wiring.transports}
        undo.pop_all()
    return emulated(_joined(wiring, rank, parts), wiring.emulation)


def _joined(wiring: Wiring, rank: int, parts: dict[TransportName, Transport]) -> Transport:
    if len(parts) == 1:
        return next(iter(parts.values()))
    lanes = {
        pair: parts[carrier.transport] for pair, carrier in wiring.carriers.items() if rank in pair
    }
    return MixedTransport(lanes, rank=rank, num_ranks=wiring.num_ranks)


def _collective(
    wiring: Wiring, rank: int, store: TCPStore, device: torch.device, undo: ExitStack
) -> Transport:
    pairs = set(wiring.pairs("collective"))
    transport = CollectiveTransport(
        store,
        rank=rank,
        num_ranks=wiring.num_ranks,
        lanes=[lane for lane in wiring.lanes if lane in pairs],
        device=device,
        timeout_s=wiring.timeout_s,
        name=wiring.name,
        members=reached_from(rank, pairs),
    )
    undo.callback(transport.close)
    transport.warm(timeout_s=wiring.timeout_s)
    return transport


def _streams(
    wiring: Wiring, rank: int, store: TCPStore, device: torch.device, undo: ExitStack
) -> Transport:
    if wiring.secrets is None:
        raise ConfigError("streams: the run has no credentials")
    pairs = set(wiring.pairs("streams"))
    door = _door(wiring, rank, address_towards(store.host))
    undo.callback(door.close)
    transport = StreamsTransport(
        door,
        rank=rank,
        addresses=exchange_addresses(
            PrefixStore(f"{wiring.name}/streams", store),
            door,
            rank=rank,
            num_ranks=wiring.num_ranks,
        ),
        credentials=wiring.secrets.credentials(),
        num_streams={
            lane: wiring.carriers[lane].num_streams for lane in wiring.lanes if lane in pairs
        },
        others=pairs,
        timeout_s=wiring.timeout_s,
    )
    undo.callback(transport.close)
    transport.warm(timeout_s=wiring.timeout_s)
    return StagedTransport(transport) if device.type == "cuda" else transport


def _door(wiring: Wiring, rank: int, host: str) -> Door:
    port = 0 if wiring.streams_port is None else wiring.streams_port + rank
    try:
        return Door(host, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster.streams_port: rank {rank} cannot listen on {host}:{port}: {error}"
        ) from None


def _no_ray() -> Transport:
    raise ConfigError("transport object_store needs Ray; without it: collective or streams")


def reached_from(rank: int, pairs: Collection[Lane]) -> list[int]:
    """The ranks that a rank reaches over these pairs, itself included.

    >>> reached_from(1, [(0, 1), (3, 2), (1, 0)])
    [0, 1]
    """
    reached = {rank}
    while True:
        grown = reached.union(*(pair for pair in pairs if reached.intersection(pair)))
        if grown == reached:
            return sorted(reached)
        reached = grown
