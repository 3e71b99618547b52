"""Ranks in processes of their own, started once and given one body after another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from crosspipe_ray.carriers import Carrier, Carriers, uniform
from crosspipe_ray.engine.transports import (
    LinkShape,
    ShapedTransport,
    StagedTransport,
    Transport,
    host_store,
    join_store,
)
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.engine.transports.streams import RunSecrets
from crosspipe_ray.engine.transports.streams.issuing import issue
from crosspipe_ray.engine.wiring import Wiring, connected
from tests.contract.transport_contract import TIMEOUT_S, Body

Kind = Literal["plain", "shaped", "streams", "staged", "mixed"]

_READY = "ready"
# The other pairs have no communicator of their own and share one.
LANES = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]

COLLECTIVE, STREAMS = Carrier(), Carrier("streams", 3)


def carriers(kind: Kind, num_ranks: int) -> Carriers:
    """What carries each pair; mixed: a lane's two directions differ, and so do its neighbours."""
    if kind == "mixed":
        return {
            (src, dst): STREAMS if (src - dst) % 3 == 1 else COLLECTIVE
            for src, dst in uniform(num_ranks, COLLECTIVE)
        }
    return uniform(num_ranks, STREAMS if kind in ("streams", "staged") else COLLECTIVE)


def emulated_links() -> dict[tuple[int, int], LinkShape]:
    """A WAN between ranks 0 and 1, a channel that two ranks share, nothing elsewhere."""
    shared = LinkShape(channel="shared", occupancy_ns=lambda _: 50_000)
    return {(0, 1): wan("east/west"), (1, 0): wan("west/east"), (0, 2): shared, (1, 2): shared}


def wan(channel: str) -> LinkShape:
    return LinkShape(
        channel=channel, latency_ns=2_000_000, jitter_ns=1_000_000, occupancy_ns=lambda n: n // 4
    )


def run_body(transport: Transport, body: Body) -> Any:
    """Closing also tells the other ranks that this one has failed."""
    try:
        return body(transport)
    finally:
        transport.close()


class RankProcesses:
    """A few processes that wait for bodies.

    Args:
        num_ranks: most ranks that a body can have.
        folder: for what the processes write to stderr and for the clocks of emulated channels.
        device: where bodies make their tensors.
        checks_leaks: whether a body and its transport must leave no thread and no open file.
    """

    def __init__(
        self, num_ranks: int, folder: Path, *, device: str = "cpu", checks_leaks: bool = True
    ) -> None:
        self._store = host_store("127.0.0.1", timeout_s=TIMEOUT_S)
        (folder / "streams").mkdir()
        issue(folder / "streams")
        self._logs = [folder / f"rank{rank}.stderr" for rank in range(num_ranks)]
        self._names = (f"body{number}" for number in itertools.count())
        context = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        for rank, log in enumerate(self._logs):
            here, there = context.Pipe()
            arguments = (_Rank(rank, device, folder, checks_leaks), self._store.port, log, there)
            self._processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self._connections.append(here)
        for process in self._processes:
            process.start()
        for rank in range(num_ranks):
            assert self._result(rank, _READY) == (False, None)

    def run(
        self, kind: Kind, num_ranks: int, body: Body, *, timeout_s: float = 2 * TIMEOUT_S
    ) -> list[Any]:
        """Runs a body on the first ranks, over a new transport."""
        name = next(self._names)
        for connection in self._connections[:num_ranks]:
            connection.send((kind, name, num_ranks, body))
        results = [self._result(rank, name, timeout_s) for rank in range(num_ranks)]
        failures = [text for has_failed, text in results if has_failed]
        assert not failures, "\n".join(failures)
        return [value for _, value in results]

    def _result(self, rank: int, name: str, timeout_s: float = 2 * TIMEOUT_S) -> tuple[bool, Any]:
        """Whether a body has failed, and what it returned; a late answer to another is dropped."""
        while self._connections[rank].poll(timeout_s):
            answered, has_failed, value = self._connections[rank].recv()
            if answered == name:
                return has_failed, value
        return True, f"rank {rank} does not answer"

    def stop(self) -> str:
        """Ends the processes; returns what they wrote to stderr."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(TIMEOUT_S)
            process.kill()
        return "".join(log.read_text() for log in self._logs)


@dataclass(frozen=True)
class _Rank:
    rank: int
    device: str
    folder: Path
    checks_leaks: bool

    def run(self, store: TCPStore, kind: Kind, name: str, num_ranks: int, body: Body) -> Any:
        before = _held_by_process()
        transport = self._connect(store, name, kind, num_ranks)
        if kind == "shaped":
            clock_dir = self.folder / name
            clock_dir.mkdir(exist_ok=True)
            transport = ShapedTransport(transport, links=emulated_links(), clock_dir=clock_dir)
        if kind == "staged":
            transport = StagedTransport(transport)
        result = run_body(transport, body)
        if self.checks_leaks and self.device == "cpu":  # CUDA itself keeps threads and files
            assert _is_back_to(before), "threads or files are left behind"
        return result

    def _connect(self, store: TCPStore, name: str, kind: Kind, num_ranks: int) -> Transport:
        wiring = Wiring(
            num_ranks=num_ranks,
            carriers=carriers(kind, num_ranks),
            lanes=[lane for lane in LANES if max(lane) < num_ranks],
            timeout_s=TIMEOUT_S,
            secrets=RunSecrets.read(self.folder / "streams"),
            name=name,
        )
        return connected(wiring, self.rank, store=store, device=torch.device(self.device))


def _serve(rank: _Rank, port: int, log: Path, connection: Connection) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    # NCCL takes ranks that share a GPU for a mistake, unless they say that they are on other hosts.
    os.environ["NCCL_HOSTID"] = f"rank{rank.rank}"
    torch.set_num_threads(1)
    torch.set_default_device(rank.device)
    store = join_store("127.0.0.1", port, timeout_s=TIMEOUT_S)
    connection.send((_READY, False, None))
    with suppress(EOFError):  # the test is over
        while True:
            kind, name, num_ranks, body = connection.recv()
            try:
                result = (name, False, rank.run(store, kind, name, num_ranks, body))
            except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
                result = (name, True, f"rank {rank.rank}: {traceback.format_exc()}")
            connection.send(result)


def _is_back_to(before: tuple[int, ...]) -> bool:
    """The kernel lists a thread for a moment after it was joined."""
    deadline = time.monotonic() + TIMEOUT_S
    while _held_by_process() != before and time.monotonic() < deadline:
        time.sleep(0.001)
    return _held_by_process() == before


def _held_by_process() -> tuple[int, ...]:
    """Numbers of threads and of open files, sockets included."""
    return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("task", "fd"))
