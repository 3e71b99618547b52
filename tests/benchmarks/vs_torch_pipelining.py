"""Our plan in our engine against torch.distributed.pipelining, over one emulated WAN.

    python -m tests.benchmarks.vs_torch_pipelining [T_LAT,T_BW ...]

4 ranks in 2 regions, each rank in a network namespace; 8 microbatches, F = I = W = 40 ms sleeps,
memory for as many microbatches on every rank as 1F1B's first rank holds (interleaved: what it
needs). Step time in T_F = 40 ms, median of 3 steps after 2; in brackets, the most microbatches that
a rank held. Our order in torch's runtime and our plan in our engine tell the gains of order and
engine apart. Some minutes a point; needs root and /dev/net/tun.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import Plan, write_plan
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.schedule_csv import to_csv
from crosspipe_ray.testing.wan import Wan, emulated_wan
from tests.benchmarks.wan_ranks import (
    BLOCK_US,
    points_of_command,
    recipe_of,
    rehearsed_us,
    run_ranks,
    wan_of,
)

_NUM_WARMUP_STEPS, _NUM_STEPS = 2, 5
_POINTS = ((0.0, 0.0), (0.25, 2.0), (2.0, 0.25), (2.0, 2.0))
_PEERS = {
    "Schedule1F1B": ("1f1b", Pattern.ONE_PER_RANK),
    "ScheduleInterleaved1F1B": ("interleaved", Pattern.LOOP),
    "ScheduleInterleavedZeroBubble": ("interleaved", Pattern.LOOP),
    "ScheduleZBVZeroBubble": ("zb-v", Pattern.WAVE),
}


def main() -> None:
    """Prints the table."""
    print(
        f"| (T_lat, T_bw) / T_F | {' | '.join(_PEERS)} | our order in torch | ours | model | gain |"
    )
    print(f"|{'---|' * (len(_PEERS) + 5)}")
    for latency, bandwidth in points_of_command(_POINTS):
        recipe = recipe_of(latency, bandwidth, num_ranks=4, num_microbatches=8)
        with (
            emulated_wan(wan_of(recipe)) as wan,
            tempfile.TemporaryDirectory() as folder,
        ):
            _print_row(wan, Path(folder), recipe)


def _print_row(wan: Wan, folder: Path, recipe: Recipe) -> None:
    peers = []
    for name, (method, pattern) in _PEERS.items():
        # Interleaved holds more than the limit: it gets what it needs, and its peak is printed.
        memory = None if method == "interleaved" else recipe.memory
        made = _plan(replace(recipe, pattern=pattern, memory=memory), method)
        peers.append(_torch_step(wan, folder, made, name))
    ours = min(
        (_plan(replace(recipe, pattern=pattern), "auto") for pattern in Pattern),
        key=lambda made: made.timeline.makespan_ns,
    )
    (folder / "plan.csv").write_text(to_csv(ours.schedule))
    in_torch = _torch_step(wan, folder, ours, str(folder / "plan.csv"))
    step = our_step(wan, folder, ours)
    cells = [f"{cell.step:.1f} ({cell.peak:g})" for cell in (*peers, in_torch)]
    row = " | ".join([*cells, f"{step:.1f}", f"{ours.timeline.makespan_ns / 1000 / BLOCK_US:.1f}"])
    gain = min(cell.step for cell in peers) / step
    point = f"({recipe.latency_ratio:g}, {recipe.bandwidth_ratio:g})"
    print(f"| {point} | {row} | {gain:.2f} x |", flush=True)


def _plan(recipe: Recipe, method: str) -> Plan:
    return plan(generate(recipe), method=method)


class _Cell(NamedTuple):
    """Step time in blocks, and the most microbatches that a rank held."""

    step: float
    peak: float


def _torch_step(wan: Wan, folder: Path, made: Plan, schedule: str) -> _Cell:
    write_plan(made, folder / "plan.json")
    module = ["tests.benchmarks.torch_pipelining", str(folder / "plan.json"), schedule]
    *steps, peak = run_ranks(wan, module, num_steps=_NUM_STEPS).split()
    return _Cell(_median([float(step) * 1e6 for step in steps]), float(peak))


def our_step(wan: Wan, folder: Path, made: Plan) -> float:
    """Step time of our engine, in blocks."""
    write_plan(made, folder / "plan.json")
    return _median(rehearsed_us(wan, folder / "plan.json", num_steps=_NUM_STEPS))


def _median(steps_us: Sequence[float]) -> float:
    return median(steps_us[_NUM_WARMUP_STEPS:]) / BLOCK_US


if __name__ == "__main__":
    main()
