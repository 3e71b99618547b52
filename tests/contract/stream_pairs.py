"""Two ranks of the streams transport in one process, and what goes between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.engine.transports.streams import (
    Credentials,
    Door,
    StreamsTransport,
)
from tests.contract.tcp_proxy import CuttingProxy
from tests.contract.transport_contract import TIMEOUT_S, receive, send

Pair = tuple[StreamsTransport, StreamsTransport]


@contextmanager
def pair(
    credentials: Credentials,
    *,
    num_streams: int = 1,
    proxy: CuttingProxy | None = None,
    door: Door | None = None,
    resume_s: float = 10.0,
) -> Iterator[Pair]:
    """Two ranks in this process; rank 0 reaches rank 1 through the proxy."""
    doors = [Door("127.0.0.1"), door or Door("127.0.0.1")]
    addresses = [one.address for one in doors]

    def connect(rank: int) -> StreamsTransport:
        seen = [addresses[0], proxy.address] if proxy is not None and rank == 0 else addresses
        return StreamsTransport(
            doors[rank],
            rank=rank,
            addresses=seen,
            credentials=credentials,
            num_streams={(0, 1): num_streams},
            timeout_s=TIMEOUT_S,
            resume_s=resume_s,
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(connect, range(2), timeout=TIMEOUT_S)
    try:
        yield first, second
    finally:
        first.close()
        second.close()


@contextmanager
def proxied(
    credentials: Credentials, cut_after_bytes: Iterable[int] = (), **options: int
) -> Iterator[tuple[CuttingProxy, Pair]]:
    door = Door("127.0.0.1")
    proxy = CuttingProxy(door.address, cut_after_bytes)
    try:
        with pair(credentials, proxy=proxy, door=door, **options) as transports:
            yield proxy, transports
    finally:
        proxy.close()


def exchange(transports: Pair, message: torch.Tensor) -> torch.Tensor:
    sender, receiver = transports
    into = torch.zeros_like(message)
    arrival = receiver.irecv(into, peer=0, tag=5)
    sender.isend(message, peer=1, tag=5).wait(timeout_s=TIMEOUT_S)
    arrival.wait(timeout_s=TIMEOUT_S)
    return into


def noise(num_bytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator)


def send_and_receive(transports: tuple[Transport, Transport]) -> None:
    sender, receiver = transports
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, receiver, peer=0)
        send(sender, 11, peer=1)
        assert received.result(TIMEOUT_S) == 11
