"""One process per host of an emulated WAN: what benchmarks over real TCP share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crosspipe_ray.generator import Recipe
from crosspipe_ray.testing.wan import Link, Region, Wan, WanSpec
from crosspipe_ray.testing.wan.lifecycle import DEVICE

BLOCK_US = 40_000.0
_MESSAGE_BYTES = 500_000
_TIMEOUT_S = 100
_PORT = 29_511


def recipe_of(latency: float, bandwidth: float, *, num_ranks: int, num_microbatches: int) -> Recipe:
    """Blocks of 40 ms over two regions; memory for as many microbatches as 1F1B's first rank."""
    return Recipe(
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        forward_us=BLOCK_US,
        backward_input_us=BLOCK_US,
        backward_weight_us=BLOCK_US,
        output_bytes=_MESSAGE_BYTES,
        latency_ratio=latency,
        bandwidth_ratio=bandwidth,
        memory=1.0,
    )


def points_of_command(otherwise: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(T_lat, T_bw) / T_F of each argument, as in 0.25,2."""
    points = [tuple(map(float, argument.split(","))) for argument in sys.argv[1:]]
    return [(latency, bandwidth) for latency, bandwidth in points or otherwise]


def wan_of(recipe: Recipe) -> WanSpec:
    """Two regions of one host per rank, with the recipe's links between them."""
    latency_us = recipe.latency_ratio * recipe.forward_us
    occupancy_us = recipe.bandwidth_ratio * recipe.forward_us
    link = Link(
        src="us",
        dst="eu",
        latency_ms=latency_us / 1000,
        bandwidth_mbit_s=recipe.output_bytes * 8 / occupancy_us if occupancy_us else None,
        queue_ms=5000,  # the schedule keeps the link busy; nothing is to be lost for it
    )
    num_hosts = recipe.num_ranks // 2
    return WanSpec(
        regions=(Region(name="us", num_hosts=num_hosts), Region(name="eu", num_hosts=num_hosts)),
        links=(link,),
        sysctls={"net.ipv4.tcp_slow_start_after_idle": 0},
    )


def rehearsed_us(wan: Wan, plan: Path, *, num_steps: int) -> list[float]:
    """Makespan of every step of a rehearsal over the WAN's own links, in microseconds."""
    module = ["crosspipe_ray.engine", str(plan), "--real-links"]
    printed = run_ranks(wan, module, num_steps=num_steps)
    return [float(ms) * 1000 for ms in re.findall(r"measured ([\d.]+) ms", printed)]


def run_ranks(wan: Wan, module: Sequence[str], *, num_steps: int) -> str:
    """Runs a module on every host, as the rank of its number; returns what rank 0 prints."""
    num_ranks = len(wan.spec.hosts)
    arguments = [sys.executable, "-m", *module, "--steps", str(num_steps)]
    command = ["timeout", str(_TIMEOUT_S), *arguments]
    with ThreadPoolExecutor(num_ranks) as pool:
        runs = [pool.submit(_run_rank, wan, rank, command) for rank in range(num_ranks)]
        done = [run.result() for run in runs]
    if any(rank.returncode for rank in done):
        raise SystemExit("\n".join(rank.stderr for rank in done))
    return done[0].stdout


def _run_rank(wan: Wan, rank: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    host = wan.spec.hosts[rank]
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(len(wan.spec.hosts)),
        "MASTER_ADDR": wan.spec.hosts[0].address,
        "MASTER_PORT": str(_PORT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": DEVICE,
    }
    return subprocess.run(
        wan.command(host.name, command),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
