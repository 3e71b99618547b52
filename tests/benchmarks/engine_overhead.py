"""What the engine adds to the clock: rehearsals over gloo, without any injected delay.

    python -m tests.benchmarks.engine_overhead

4 ranks x 16 microbatches by zb-h1, stages that sleep; measured / simulated makespan, median of 5
steps after 2.
Wanted with 64 KiB messages: <= 1.015 with 20 ms blocks, <= 1.05 with 5 ms blocks.
"""

from __future__ import annotations

from crosspipe_ray.generator import Recipe
from tests.benchmarks.rehearsals import measured_ratio

_SIZES = {"64 KiB": 2**16, "512 KiB": 2**19, "2 MiB": 2**21, "8 MiB": 2**23}


def main() -> None:
    """Prints the table."""
    print("| message | 20 ms blocks | 5 ms blocks |\n|---|---|---|")
    for name, size in _SIZES.items():
        ratios = (_ratio(block_us, size) for block_us in (20_000, 5_000))
        print(f"| {name} | {' | '.join(f'{ratio:.4f}' for ratio in ratios)} |", flush=True)


def _ratio(block_us: int, message_bytes: int) -> float:
    recipe = Recipe(
        num_ranks=4,
        num_microbatches=16,
        clusters=("local",),
        forward_us=block_us,
        backward_input_us=block_us,
        backward_weight_us=block_us,
        output_bytes=message_bytes,
    )
    return measured_ratio(recipe, method="zb-h1", runner="torchrun")


if __name__ == "__main__":
    main()
