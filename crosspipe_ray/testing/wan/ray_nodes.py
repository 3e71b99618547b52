"""Real Ray nodes on the hosts of an emulated WAN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from crosspipe_ray.errors import CrosspipeError
from crosspipe_ray.testing.wan import lifecycle, namespaces, state
from crosspipe_ray.testing.wan.spec import Host, WanSpec

_PORT = 6379
_START_TIMEOUT_S = 90.0
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
LABEL = "region"


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
    _wait(head, _spawn(name, head, ["--head", f"--port={_PORT}", "--include-dashboard=false"]))
    started = [(host, _spawn(name, host, [f"--address={address}"])) for host in workers]
    for host, process in started:
        _wait(host, process)
    return address


def _spawn(name: str, host: Host, role: list[str]) -> subprocess.Popen[str]:
    # A folder of its own per node; its path is short, since it goes into names of Unix sockets.
    folder = state.folder(name) / host.name
    arguments = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", *role),
        f"--node-ip-address={host.address}",
        f"--node-name={host.name}",
        f"--temp-dir={folder}",
        f"--labels={LABEL}={host.region}",
        f"--num-cpus={host.num_cpus}",
        "--num-gpus=0",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
    ]
    return subprocess.Popen(
        namespaces.command(lifecycle.namespace(name, host.name), arguments),
        env={**os.environ, **environment(None)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path("/"),
    )


def _wait(host: Host, process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=_START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise CrosspipeError(
            f"{host.name}: its Ray node is not up after {_START_TIMEOUT_S:g} s"
        ) from None
    if process.returncode:
        raise CrosspipeError(f"{host.name}: its Ray node does not start: {output.strip()[-500:]}")
