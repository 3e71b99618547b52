"""How well the simulated makespan predicts a rehearsal on Ray actors with an emulated link.

    python -m tests.benchmarks.rehearsal_accuracy

4 ranks x 16 microbatches, cut in the middle, 20 ms blocks; measured / simulated makespan, median of
3 steps after 2.
Wanted: within 5 %.
"""

from __future__ import annotations

from crosspipe_ray.generator import Recipe
from tests.benchmarks.rehearsals import measured_ratio

_POINTS = ((0.0, 0.0), (0.5, 0.5), (2.0, 0.25), (2.0, 2.0))
_METHODS = ("1f1b", "zb-h1", "greedy")
_BLOCK_US = 20_000


def main() -> None:
    """Prints the table."""
    print(f"| (T_lat, T_bw) / T_F | {' | '.join(_METHODS)} |\n|---|---|---|---|")
    for latency, bandwidth in _POINTS:
        recipe = Recipe(
            num_ranks=4,
            num_microbatches=16,
            forward_us=_BLOCK_US,
            backward_input_us=_BLOCK_US,
            backward_weight_us=_BLOCK_US,
            output_bytes=2**20,
            latency_ratio=latency,
            bandwidth_ratio=bandwidth,
        )
        ratios = (measured_ratio(recipe, method=m, runner="ray", num_steps=3) for m in _METHODS)
        cells = " | ".join(f"{ratio:.4f}" for ratio in ratios)
        print(f"| ({latency:g}, {bandwidth:g}) | {cells} |", flush=True)


if __name__ == "__main__":
    main()
