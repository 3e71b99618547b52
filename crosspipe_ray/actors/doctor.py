"""Gathers the facts of every node of a cluster; `diagnosis` says what is wrong with them."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from crosspipe_ray import host
from crosspipe_ray.actors.cluster import alive_nodes
from crosspipe_ray.diagnosis import NodeFacts, Way
from crosspipe_ray.engine import clock
from crosspipe_ray.errors import RunError

Address = tuple[str, int]

_CONNECT_TIMEOUT_S = 5.0
_NUM_ROUND_TRIPS = 8
_TIME = struct.Struct("!q")


def node_facts(num_ray_gpus: float) -> NodeFacts:
    """The facts of the node that this process runs on, all but its ways to others."""
    context = ray.get_runtime_context()
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs that were not asked for
    gpus = tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    nccl: Any = torch.cuda.nccl  # has no types
    return NodeFacts(
        address=address,
        labels={name: str(value) for name, value in context.get_node_labels().items()},
        versions=host.versions(),
        boot_id=host.boot_id(),
        has_token_auth=os.environ.get("RAY_AUTH_MODE") == "token",
        has_token_file=Path("~/.ray/auth_token").expanduser().exists(),
        congestion_control=host.sysctl("net.ipv4.tcp_congestion_control"),
        available_congestion_controls=tuple(
            (host.sysctl("net.ipv4.tcp_available_congestion_control") or "").split()
        ),
        tcp_rmem_bytes=_largest("net.ipv4.tcp_rmem"),
        tcp_wmem_bytes=_largest("net.ipv4.tcp_wmem"),
        has_slow_start_after_idle=host.sysctl("net.ipv4.tcp_slow_start_after_idle") == "1",
        is_clock_synchronised=host.is_clock_synchronised(),
        num_ray_gpus=num_ray_gpus,
        gpus=gpus,
        nccl=".".join(map(str, nccl.version())) if gpus else None,
    )


def _largest(name: str) -> int | None:
    text = host.sysctl(name)
    return int(text.split()[-1]) if text else None


class Witness:
    """Looks around on one node.

    Args:
        num_ray_gpus: of the node, by Ray's own word.
    """

    def __init__(self, num_ray_gpus: float) -> None:
        self._facts = node_facts(num_ray_gpus)
        self._listener = socket.create_server((self._facts.address, 0))
        threading.Thread(target=self._serve, name="time server", daemon=True).start()

    @ray.method
    def address(self) -> Address:
        """Where it tells the time."""
        host_name, port = self._listener.getsockname()[:2]
        return host_name, port

    @ray.method
    def look(self, peers: Sequence[Address]) -> NodeFacts:
        """The facts of this node, with its ways to others."""
        return replace(self._facts, ways=tuple(map(way_to, peers)))

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with suppress(OSError):
                tell_time(connection)


def tell_time(connection: socket.socket) -> None:
    """Answers each byte with the time, until the other end hangs up."""
    with connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        while connection.recv(1):
            connection.sendall(_TIME.pack(clock.now_ns()))


def way_to(peer: Address) -> Way:
    """Asks a time server a few times; the fastest answer counts."""
    try:
        with socket.create_connection(peer, timeout=_CONNECT_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            round_trip_ns, offset_ns = min(_ask_time(connection) for _ in range(_NUM_ROUND_TRIPS))
    except OSError:
        return Way(peer=peer[0], round_trip_us=None)
    return Way(peer=peer[0], round_trip_us=round_trip_ns / 1000, clock_offset_us=offset_ns / 1000)


def _ask_time(connection: socket.socket) -> tuple[int, float]:
    """Round trip, and the peer's clock minus this one's, if both ways take equally long."""
    before_ns = clock.now_ns()
    connection.sendall(b"?")
    answer = b""
    while len(answer) < _TIME.size:
        received = connection.recv(_TIME.size - len(answer))
        if not received:
            raise ConnectionError("the time server hung up")
        answer += received
    after_ns = clock.now_ns()
    [peer_ns] = _TIME.unpack(answer)
    return after_ns - before_ns, peer_ns - (before_ns + after_ns) / 2


WitnessActor = ray.remote(num_cpus=0)(Witness)


def gather_facts(*, timeout_s: float = 60.0) -> list[NodeFacts]:
    """The facts of all nodes of the connected cluster, in Ray's order.

    Raises:
        RunError: a node does not answer.
    """
    nodes = alive_nodes()
    witnesses = [_start(node) for node in nodes]
    try:
        addresses = ray.get([each.address.remote() for each in witnesses], timeout=timeout_s)
        looks = [
            witness.look.remote([peer for peer in addresses if peer != own])
            for witness, own in zip(witnesses, addresses, strict=True)
        ]
        facts: list[NodeFacts] = ray.get(looks, timeout=timeout_s)
    except GetTimeoutError:
        names = ", ".join(node["NodeManagerAddress"] for node in nodes)
        raise RunError(
            f"not all nodes answered within {timeout_s:g} s; there are {names}"
        ) from None
    except RayError as error:
        raise RunError(f"looking at the nodes: {error}") from None
    finally:
        for witness in witnesses:
            ray.kill(witness)
    return facts


def _start(node: dict[str, Any]) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = WitnessActor.options(scheduling_strategy=strategy)
    return options.remote(node["Resources"].get("GPU", 0.0))
