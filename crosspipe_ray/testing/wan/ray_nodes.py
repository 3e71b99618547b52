"""Real Ray nodes on the hosts of an emulated WAN."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from crosspipe_ray.errors import CrosspipeError
from crosspipe_ray.testing.wan import lifecycle, namespaces, state
from crosspipe_ray.testing.wan.spec import Host, WanSpec

_PORT = 6379
_START_TIMEOUT_S = 90.0
_END_TIMEOUT_S = 10.0
_MAX_QUOTED = 500
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
_LABEL = "region"


def environment(ray_address: str | None) -> dict[str, str]:
    """Variables for everything that talks to the nodes."""
    fixed = {
        "RAY_AUTH_MODE": "disabled",  # else a token in the home folder turns it on, for some nodes
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return {**fixed, "RAY_ADDRESS": ray_address} if ray_address else fixed


def start(name: str, spec: WanSpec) -> str:
    """Starts a node on every host, labelled with its region; the head is on the first.

    Returns:
        The cluster's address.

    Raises:
        CrosspipeError: a node does not start; says what it printed.
    """
    head, *workers = spec.hosts
    address = f"{head.address}:{_PORT}"
    head_role = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
    _start_together(name, [head], head_role)
    _start_together(name, workers, [f"--address={address}"])
    return address


def _start_together(name: str, hosts: Sequence[Host], role: Sequence[str]) -> None:
    started = [_spawn(name, host, role) for host in hosts]
    try:
        for host, process in zip(hosts, started, strict=True):
            _wait(host, process, _log(name, host))
    finally:
        for process in started:
            process.kill()  # of no effect on those that are done
            process.wait(_END_TIMEOUT_S)


def _log(name: str, host: Host) -> Path:
    return state.folder(name) / f"{host.name}.log"


def _spawn(name: str, host: Host, role: Sequence[str]) -> subprocess.Popen[bytes]:
    # A folder of its own per node; its path is short, since it goes into names of Unix sockets.
    folder = state.folder(name) / host.name
    arguments = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *role),
        f"--node-ip-address={host.address}",
        f"--node-name={host.name}",
        f"--temp-dir={folder}",
        f"--labels={_LABEL}={host.region}",
        f"--num-cpus={host.num_cpus}",
        "--num-gpus=0",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
    ]
    with _log(name, host).open("w") as log:
        return subprocess.Popen(
            namespaces.command(lifecycle.namespace(name, host.name), arguments),
            env={**os.environ, **environment(None)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(host: Host, process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        failed = process.wait(_START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        said = log.read_text().strip()[-_MAX_QUOTED:]
        raise CrosspipeError(
            f"{host.name}: its Ray node is not up within {_START_TIMEOUT_S:g} s: {said}"
        )
