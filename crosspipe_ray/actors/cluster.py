"""The Ray cluster of a run: an existing one, or nodes of this machine that stand for regions."""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from crosspipe_ray.errors import ClusterError

_REACH_TIMEOUT_S = 5.0
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of a future change at each start
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of the ranks that fail because another one has
    "RAY_AUTH_MODE": "disabled",  # else a token in the home folder turns it on, for some nodes
}


@contextmanager
def cluster(regions: Sequence[str], *, label: str, address: str | None) -> Iterator[None]:
    """A connection to a cluster that has a node for every region.

    Args:
        regions: of each rank.
        label: node label that holds a region's name.
        address: of a running cluster; None starts one on this machine, with a node per region.

    Raises:
        ClusterError: nothing answers there, or a region has no node; nothing has been started then.
    """
    with connected(address) if address else local_regions(regions, label=label):
        check_labels(regions, label=label)
        yield


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a running cluster.

    Raises:
        ClusterError: nothing answers there.
    """
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ClusterError(
            f"--address {address}: no Ray cluster answers ({reason}); give HOST:PORT of a head "
            "node, or 'auto'"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def local_regions(rank_regions: Sequence[str], *, label: str) -> Iterator[None]:
    """A cluster on this machine with one labelled node per region, and a connection to it.

    Args:
        rank_regions: region of each rank; each node has a CPU per rank and one more.
        label: the node label that holds the region's name.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes = Cluster()
    try:
        for region, num_ranks in Counter(rank_regions).items():
            nodes.add_node(
                num_cpus=num_ranks + 1,
                labels={label: region},
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
            )
        with connected(nodes.address):
            yield
    finally:
        nodes.shutdown()  # type: ignore[no-untyped-call]  # Ray's own


def check_labels(rank_regions: Sequence[str], *, label: str) -> None:
    """Checks, before anything starts, that every region has a node.

    Raises:
        ClusterError: names the region, and lists the labels that there are.
    """
    known = Counter(node["Labels"].get(label) for node in alive_nodes())
    for region in dict.fromkeys(rank_regions):
        if region not in known:
            there = ", ".join(f"{name or 'no label'} ({count})" for name, count in known.items())
            raise ClusterError(
                f"cluster.regions: no Ray node has the label {label}={region}; nodes by {label}: "
                f"{there}"
            )


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's own description of every node that is up: the head, then the others by address."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return sorted((node for node in nodes if node["Alive"]), key=_head_first)


def _head_first(node: dict[str, Any]) -> tuple[bool, str, str]:
    is_head = "node:__internal_head__" in node["Resources"]
    return not is_head, node["NodeManagerAddress"], node["NodeID"]


def _check_reachable(address: str) -> None:
    """Finds out in seconds what Ray finds out in a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--address {address}: nothing answers there ({error}); give HOST:PORT of a head node"
        ) from None
