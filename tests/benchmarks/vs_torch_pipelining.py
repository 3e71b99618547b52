"""Our plan in our engine against torch.distributed.pipelining, over one emulated WAN.

    python -m tests.benchmarks.vs_torch_pipelining [T_LAT,T_BW ...]

4 ranks in 2 regions, each rank in a network namespace; 8 microbatches, F = I = W = 40 ms sleeps,
memory for as many microbatches on every rank as 1F1B's first rank holds (interleaved: what it
needs). Step time in T_F = 40 ms, median of 3 steps after 2. Our order in torch's runtime and our
plan in our engine tell the gains of order and engine apart. Some minutes a point; needs root and
/dev/net/tun.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import Plan, write_plan
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.schedule import to_csv
from crosspipe_ray.testing.wan import Wan, emulated_wan
from tests.benchmarks.wan_ranks import rehearsed_us, run_ranks, wan_of

_BLOCK_US = 40_000.0
_MESSAGE_BYTES = 500_000
_NUM_WARMUP_STEPS, _NUM_STEPS = 2, 3
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
    points = [tuple(map(float, point.split(","))) for point in sys.argv[1:]] or _POINTS
    for latency, bandwidth in points:
        with (
            emulated_wan(
                wan_of(
                    latency,
                    bandwidth,
                    num_ranks=4,
                    block_us=_BLOCK_US,
                    message_bytes=_MESSAGE_BYTES,
                )
            ) as wan,
            tempfile.TemporaryDirectory() as folder,
        ):
            _print_row(wan, Path(folder), latency, bandwidth)


def _print_row(wan: Wan, folder: Path, latency: float, bandwidth: float) -> None:
    cells = []
    for name, (method, pattern) in _PEERS.items():
        made = _plan(latency, bandwidth, method, pattern)
        cells.append(_torch_step(wan, folder, made, name))
    best_peer = min(cells)
    ours = min(
        (_plan(latency, bandwidth, "auto", pattern) for pattern in Pattern),
        key=lambda made: made.timeline.makespan_ns,
    )
    (folder / "plan.csv").write_text(to_csv(ours.schedule))
    cells.append(_torch_step(wan, folder, ours, str(folder / "plan.csv")))
    cells.append(_our_step(wan, folder, ours))
    cells.append(ours.timeline.makespan_ns / 1000 / _BLOCK_US)
    row = " | ".join(f"{cell:.1f}" for cell in cells)
    print(f"| ({latency:g}, {bandwidth:g}) | {row} | {best_peer / cells[-2]:.2f} x |", flush=True)


def _plan(latency: float, bandwidth: float, method: str, pattern: Pattern) -> Plan:
    recipe = Recipe(
        num_ranks=4,
        num_microbatches=8,
        pattern=pattern,
        num_stages_per_rank=1 if pattern is Pattern.ONE_PER_RANK else 2,
        forward_us=_BLOCK_US,
        backward_input_us=_BLOCK_US,
        backward_weight_us=_BLOCK_US,
        output_bytes=_MESSAGE_BYTES,
        latency_ratio=latency,
        bandwidth_ratio=bandwidth,
        memory=None if method == "interleaved" else 1.0,  # its own peak is higher: printed as is
    )
    return plan(generate(recipe), method=method)


def _torch_step(wan: Wan, folder: Path, made: Plan, schedule: str) -> float:
    """Step time of a torch schedule, in blocks."""
    write_plan(made, folder / "plan.json")
    module = ["tests.benchmarks.torch_pipelining", str(folder / "plan.json"), schedule]
    printed = run_ranks(wan, module, num_steps=_NUM_WARMUP_STEPS + _NUM_STEPS)
    return _median([float(line) * 1e6 for line in printed.split()])


def _our_step(wan: Wan, folder: Path, made: Plan) -> float:
    """Step time of our engine, in blocks."""
    write_plan(made, folder / "plan.json")
    makespans_us = rehearsed_us(wan, folder / "plan.json", num_steps=_NUM_WARMUP_STEPS + _NUM_STEPS)
    return _median(makespans_us)


def _median(steps_us: Sequence[float]) -> float:
    return median(steps_us[_NUM_WARMUP_STEPS:]) / _BLOCK_US


if __name__ == "__main__":
    main()
