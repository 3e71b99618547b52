from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from crosspipe_ray.engine.transports import (
    CollectiveTransport,
    LoopbackHub,
    ShapedTransport,
    Transport,
    host_store,
    join_store,
)
from crosspipe_ray.errors import RunError
from tests.contract.rank_processes import Kind, RankProcesses, emulated_links, run_body
from tests.contract.transport_contract import CHECKS, TIMEOUT_S, Body, Check, RunRanks


def run_in_threads(shaped_dir: Path | None, num_ranks: int, body: Body) -> list[Any]:
    hub = LoopbackHub(num_ranks)
    transports: list[Transport] = [hub.transport(rank) for rank in range(num_ranks)]
    if shaped_dir is not None:
        links = emulated_links()
        transports = [ShapedTransport(t, links=links, clock_dir=shaped_dir) for t in transports]
    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(run_body, transport, body) for transport in transports]
        return [future.result(2 * TIMEOUT_S) for future in futures]


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(4, tmp_path_factory.mktemp("ranks"))
    yield processes
    assert processes.stop() == "", "a transport writes to stderr"


@pytest.fixture(params=["loopback", "shaped_loopback", *get_args(Kind)])
def run_ranks(request: pytest.FixtureRequest, tmp_path: Path) -> RunRanks:
    match request.param:
        case "loopback":
            return partial(run_in_threads, None)
        case "shaped_loopback":
            return partial(run_in_threads, tmp_path)
        case kind:
            return partial(request.getfixturevalue("rank_processes").run, kind)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_transport_keeps_the_contract(check: Check, run_ranks: RunRanks) -> None:
    check(run_ranks)


def test_a_peer_that_never_connects_is_an_error() -> None:
    store = host_store("127.0.0.1", timeout_s=0.2)
    with pytest.raises(RunError, match="connecting all ranks over gloo"):
        CollectiveTransport(
            store, rank=0, num_ranks=2, lanes=[], device=torch.device("cpu"), timeout_s=0.2
        )


def test_a_store_that_nobody_hosts_is_an_error() -> None:
    store = host_store("127.0.0.1", timeout_s=1.0)
    port = store.port
    del store
    with pytest.raises(RunError, match=f"no store at 127.0.0.1:{port}"):
        join_store("127.0.0.1", port, timeout_s=0.2)
