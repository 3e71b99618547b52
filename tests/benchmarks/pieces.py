"""What microbatches in pieces gain over one emulated WAN: planned, and run over real TCP.

    python -m tests.benchmarks.pieces [T_LAT,T_BW ...]

4 ranks in 2 regions, each rank in a network namespace; 8 microbatches, F = I = W = 40 ms sleeps,
memory for as many microbatches as 1F1B's first rank holds. At each point the best plan on one
stage per rank or two, in whole microbatches and in 2 and 4 pieces, one after the other over the
same WAN. Step time in T_F = 40 ms, median of 3 steps after 2. About a minute a point; needs root
and /dev/net/tun.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.pieces import in_pieces
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.testing.wan import Wan, emulated_wan
from tests.benchmarks.vs_torch_pipelining import our_step
from tests.benchmarks.wan_ranks import BLOCK_US, points_of_command, recipe_of, wan_of

_POINTS = ((0.0, 0.0), (0.25, 0.25), (0.25, 2.0), (2.0, 0.25), (2.0, 2.0))
_PIECES = (1, 2, 4)


def main() -> None:
    """Prints the table."""
    titles = [f"in {number}: planned, measured" for number in _PIECES]
    print(f"| (T_lat, T_bw) / T_F | {' | '.join(titles)} | gain |")
    print(f"|{'---|' * (len(_PIECES) + 2)}")
    for latency, bandwidth in points_of_command(_POINTS):
        recipe = recipe_of(latency, bandwidth, num_ranks=4, num_microbatches=8)
        with emulated_wan(wan_of(recipe)) as wan, tempfile.TemporaryDirectory() as folder:
            _print_row(wan, Path(folder), recipe)


def _print_row(wan: Wan, folder: Path, recipe: Recipe) -> None:
    plans = [_best_plan(recipe, number) for number in _PIECES]
    measured = [our_step(wan, folder, made) for made in plans]
    cells = [
        f"{made.timeline.makespan_ns / 1000 / BLOCK_US:.1f}, {step:.1f}"
        for made, step in zip(plans, measured, strict=True)
    ]
    gain = measured[0] / min(measured[1:])
    point = f"({recipe.latency_ratio:g}, {recipe.bandwidth_ratio:g})"
    print(f"| {point} | {' | '.join(cells)} | {gain:.2f} x |", flush=True)


def _best_plan(recipe: Recipe, num_pieces: int) -> Plan:
    problems = [
        in_pieces(generate(replace(recipe, pattern=pattern)), num_pieces) for pattern in Pattern
    ]
    return min(map(plan, problems), key=lambda made: made.timeline.makespan_ns)


if __name__ == "__main__":
    main()
