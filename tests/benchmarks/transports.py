"""What a message costs over each transport, between two ranks.

    python -m tests.benchmarks.transports                             both ranks here, on loopback
    python -m tests.benchmarks.transports --listen 10.0.0.1:29500     rank 0 of two hosts
    python -m tests.benchmarks.transports --join 10.0.0.1:29500 --host 10.0.0.2 --folder ...

Prints half the round trip of 64 KiB, the rate of one 64 MiB message (bytes / (arrived - sent - one
way)) and that of 32 messages of 4 MiB in flight; receives posted ahead, medians. Arrival times need
ranks that share a clock: one machine, network namespaces included. ``--folder`` holds the
credentials; both ranks need the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import PrefixStore

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import CollectiveTransport, Transport, host_store, join_store
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.engine.transports.streams import Door, StreamsTransport, exchange_addresses
from tests.benchmarks.plain_tcp import PlainTcp
from tests.contract.credentials import make_credentials

_TIMEOUT_S = 120.0
_KIB, _MIB = 1024, 1024 * 1024
_NUM_PINGS, _NUM_LARGE = 50, 8
_NUM_IN_FLIGHT = 32

Connect = Callable[[int], Transport]


def main() -> None:
    """Runs one rank, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--join", metavar="HOST:PORT")
    parser.add_argument("--host", default="127.0.0.1", help="address of this rank")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--num-streams", type=int, nargs="+", default=[0, 1, 4], help="0: gloo")
    arguments = parser.parse_args()
    counts: list[int] = arguments.num_streams
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)) / "credentials"
        if arguments.join:
            host, port = arguments.join.rsplit(":", 1)
            _run_rank(
                1, join_store(host, int(port), timeout_s=_TIMEOUT_S), arguments.host, folder, counts
            )
        elif arguments.listen:
            make_credentials(folder)  # before the other rank can join and look for them
            host, port = arguments.listen.rsplit(":", 1)
            store = TCPStore(host, int(port), is_master=True, wait_for_workers=False)
            _run_rank(0, store, host, folder, counts)
        else:
            _run_both(folder, counts)


def _run_both(folder: Path, counts: list[int]) -> None:
    make_credentials(folder)
    store = host_store("127.0.0.1", timeout_s=_TIMEOUT_S)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=_join_here, args=(store.port, folder, counts), daemon=True)
    other.start()
    _run_rank(0, store, "127.0.0.1", folder, counts)
    other.join(_TIMEOUT_S)


def _join_here(port: int, folder: Path, counts: list[int]) -> None:
    _run_rank(1, join_store("127.0.0.1", port, timeout_s=_TIMEOUT_S), "127.0.0.1", folder, counts)


def _run_rank(rank: int, store: TCPStore, host: str, folder: Path, counts: list[int]) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        print(
            "| transport | 64 KiB, half round trip | one 64 MiB | 32 x 4 MiB |\n|---|---|---|---|"
        )
    _measure("plain TCP, one socket", _plain_tcp(store, rank, host), rank)
    for num_streams in counts:
        if num_streams == 0:
            _measure("gloo", _gloo(store, rank), rank)
            continue
        name = f"streams, k = {num_streams}"
        _measure(name, _streams(PrefixStore(name, store), rank, host, folder, num_streams), rank)


def _plain_tcp(store: TCPStore, rank: int, host: str) -> Transport:
    transport = PlainTcp(store, rank=rank, host=host)
    peer = 1 - rank
    for tensor in (torch.zeros(_MIB), torch.zeros(4 * _MIB)):  # warm, as the others are
        handles = [
            transport.irecv(torch.zeros_like(tensor), peer=peer, tag=0),
            transport.isend(tensor, peer=peer, tag=0),
        ]
        for handle in handles:
            handle.wait(timeout_s=_TIMEOUT_S)
    return transport


def _gloo(store: TCPStore, rank: int) -> Transport:
    transport = CollectiveTransport(
        store,
        rank=rank,
        num_ranks=2,
        lanes=[(0, 1), (1, 0)],
        device=torch.device("cpu"),
        timeout_s=_TIMEOUT_S,
    )
    transport.warm(timeout_s=_TIMEOUT_S)
    return transport


def _streams(store: PrefixStore, rank: int, host: str, folder: Path, num_streams: int) -> Transport:
    door = Door(host)
    transport = StreamsTransport(
        door,
        rank=rank,
        addresses=exchange_addresses(store, door, rank=rank, num_ranks=2),
        credentials=make_credentials(folder),
        num_streams={(0, 1): num_streams, (1, 0): num_streams},
        timeout_s=_TIMEOUT_S,
    )
    transport.warm(timeout_s=_TIMEOUT_S)
    return transport


def _measure(name: str, transport: Transport, rank: int) -> None:
    try:
        half_s = _half_round_trip_s(transport)
        rates = [
            _bytes_per_s(transport, 64 * _MIB, num_messages=1, one_way_s=half_s),
            _bytes_per_s(transport, 4 * _MIB, num_messages=_NUM_IN_FLIGHT, one_way_s=half_s),
        ]
    finally:
        transport.close()
    if rank == 0:
        texts = [f"{rate / 1e6:.0f} MB/s" for rate in rates]
        print(f"| {name} | {half_s * 1e3:.2f} ms | {' | '.join(texts)} |", flush=True)


def _half_round_trip_s(transport: Transport) -> float:
    peer = 1 - transport.rank
    there, back = torch.zeros(64 * _KIB // 4), torch.zeros(64 * _KIB // 4)
    halves, sends = [], []
    for _ in range(_NUM_PINGS):
        start_ns = clock.now_ns()
        answer = transport.irecv(back, peer=peer, tag=0)
        if transport.rank == 1:
            answer.wait(timeout_s=_TIMEOUT_S)
        # Not waited for in the loop: a send may be done only when its receiver has said so.
        sends.append(transport.isend(there, peer=peer, tag=0))
        answer.wait(timeout_s=_TIMEOUT_S)
        halves.append((clock.now_ns() - start_ns) / 2e9)
    for send in sends:
        send.wait(timeout_s=_TIMEOUT_S)
    return statistics.median(halves)


def _bytes_per_s(
    transport: Transport, num_bytes: int, *, num_messages: int, one_way_s: float
) -> float:
    """Median over some repetitions, on rank 0; the other rank reports when all had arrived."""
    peer = 1 - transport.rank
    tensors = [torch.ones(num_bytes // 4) for _ in range(num_messages)]
    moment = torch.zeros(1, dtype=torch.int64)
    rates = []
    for _ in range(_NUM_LARGE):
        if transport.rank == 0:
            transport.irecv(moment, peer=peer, tag=0).wait(timeout_s=_TIMEOUT_S)  # all are posted
            start_ns = clock.now_ns()
            sends = [transport.isend(tensor, peer=peer, tag=1) for tensor in tensors]
            transport.irecv(moment, peer=peer, tag=2).wait(timeout_s=_TIMEOUT_S)
            elapsed_s = (int(moment) - start_ns) * 1e-9 - one_way_s
            rates.append(num_messages * num_bytes / elapsed_s)
        else:
            sends = [transport.irecv(tensor, peer=peer, tag=1) for tensor in tensors]
            transport.isend(moment, peer=peer, tag=0).wait(timeout_s=_TIMEOUT_S)
            for handle in sends:
                handle.wait(timeout_s=_TIMEOUT_S)
            moment.fill_(max(handle.done_ns or 0 for handle in sends))
            transport.isend(moment, peer=peer, tag=2).wait(timeout_s=_TIMEOUT_S)
        for handle in sends:
            handle.wait(timeout_s=_TIMEOUT_S)
    return statistics.median(rates) if rates else 0.0


if __name__ == "__main__":
    main()
