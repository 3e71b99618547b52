"""Time to check and simulate a schedule: python -m tests.benchmarks.simulator.

Wanted, both together, process time: 1.1 ms, 80 ms and 4 s.
"""

from __future__ import annotations

import resource
import time

from crosspipe_ray.planners.fixed import zb_h1
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate

SIZES = ((8, 16), (64, 256), (1024, 4096))
MOST_RUNS, ENOUGH_S = 15, 5.0


def main() -> None:
    """Prints the least of some runs per size; the first loads the machine code."""
    for num_ranks, num_microbatches in SIZES:
        problem = two_regions(num_ranks, num_microbatches)
        schedule = zb_h1(problem)
        runs_s = [_run_s(problem, schedule)]
        while len(runs_s) < 3 or (len(runs_s) < MOST_RUNS and sum(runs_s) < ENOUGH_S):
            runs_s.append(_run_s(problem, schedule))
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{num_ranks} ranks x {num_microbatches} microbatches: {min(runs_s) * 1000:.2f} ms "
            f"(first {runs_s[0] * 1000:.2f} ms; the process holds {peak_mib} MiB)"
        )


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


def _run_s(problem: Problem, schedule: Schedule) -> float:
    started = time.process_time()
    validate(problem, schedule)
    simulate(problem, schedule)
    return time.process_time() - started


if __name__ == "__main__":
    main()
