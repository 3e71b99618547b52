"""Time of one simulation: python tests/benchmarks/simulator.py (wanted: 3 ms and 150 ms)."""

from __future__ import annotations

import time

from crosspipe_ray.planners.fixed import zb_h1
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate

SIZES = ((8, 32), (64, 256))
NUM_RUNS = 15


def main() -> None:
    """Prints the least of some runs per size."""
    for num_ranks, num_microbatches in SIZES:
        problem = two_regions(num_ranks, num_microbatches)
        least_ms = min(_run_ms(problem, zb_h1(problem)) for _ in range(NUM_RUNS))
        print(f"{num_ranks} ranks x {num_microbatches} microbatches: {least_ms:.2f} ms")


def two_regions(num_ranks: int, num_microbatches: int) -> Problem:
    """One stage per rank, and a slow link in the middle."""
    link = {"latency_us": 2000, "bandwidth_bytes_per_s": 1e9}
    stage = {
        "forward_us": 1000,
        "backward_input_us": 1280,
        "backward_weight_us": 480,
        "activation_bytes": 1,
        "output_bytes": 500_000,
    }
    data = {
        "num_microbatches": num_microbatches,
        "ranks": [
            {"cluster": "us" if rank < num_ranks // 2 else "eu"} for rank in range(num_ranks)
        ],
        "stages": [{"rank": rank, **stage} for rank in range(num_ranks)],
        "links": [{"src": "us", "dst": "eu", **link}, {"src": "eu", "dst": "us", **link}],
    }
    return Problem.model_validate(data)


def _run_ms(problem: Problem, schedule: Schedule) -> float:
    started = time.perf_counter()
    simulate(problem, schedule)
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
