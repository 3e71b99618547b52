"""How well a plan predicts a rehearsal over an emulated WAN: real TCP, real queues.

    python -m tests.benchmarks.wan_prediction [METHOD ...]

8 ranks in 2 regions, each rank in a network namespace, 16 microbatches, 40 ms blocks, memory for 8
microbatches per rank; (predicted - measured) / measured makespan, median of 3 steps after 2, at the
paper's five points. Wanted: median 3 %, worst 8 %. Some minutes a method; needs root and
/dev/net/tun.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import write_plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.testing.wan import Wan, emulated_wan
from tests.benchmarks.wan_ranks import recipe_of, rehearsed_us, wan_of

_NUM_WARMUP_STEPS, _NUM_STEPS = 2, 3
_POINTS = ((0.0, 0.0), (0.25, 0.25), (0.25, 2.0), (2.0, 0.25), (2.0, 2.0))
_METHODS = ("1f1b", "zb-h1", "greedy", "auto")


def main() -> None:
    """Prints the table, then median and worst."""
    methods = sys.argv[1:] or _METHODS
    print(f"| (T_lat, T_bw) / T_F | {' | '.join(methods)} |\n|{'---|' * (len(methods) + 1)}")
    errors = []
    for latency, bandwidth in _POINTS:
        recipe = recipe_of(latency, bandwidth, num_ranks=8, num_microbatches=16)
        with emulated_wan(wan_of(recipe)) as wan:
            row = [_error(wan, recipe, method) for method in methods]
        cells = " | ".join(f"{error:+.1%}" for error in row)
        print(f"| ({latency:g}, {bandwidth:g}) | {cells} |", flush=True)
        errors += row
    sizes = [abs(error) for error in errors]
    print(f"median {median(sizes):.1%}, worst {max(sizes):.1%}")


def _error(wan: Wan, recipe: Recipe, method: str) -> float:
    made = plan(generate(recipe), method=method)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        write_plan(made, file)
        steps = rehearsed_us(wan, file, num_steps=_NUM_WARMUP_STEPS + _NUM_STEPS)
    measured_us = median(steps[_NUM_WARMUP_STEPS:])
    return made.timeline.makespan_ns / 1000 / measured_us - 1


if __name__ == "__main__":
    main()
