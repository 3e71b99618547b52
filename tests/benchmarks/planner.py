"""How good plans are, and how fast: python tests/benchmarks/planner.py [ROW ...] [--instances N].

Each row plans seeded instances, and prints how many are within the wanted gap, the median, the 95th
percentile and the worst. They go through a grid, in an order drawn once for all: the five delay
points of the CrossPipe paper, 2 and 4 regions, memory 1x and 2x, F/I/W of 1/1/1 and 1/1.28/0.48,
equal stages and stages of +-40 %.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from crosspipe_ray.compiled import SWITCH
from crosspipe_ray.errors import InfeasibleError, InputError
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.placement import Pattern, place
from crosspipe_ray.planners.portfolio import METHODS, Budget, plan
from crosspipe_ray.problem import Problem

RATIOS = ((1.0, 1.0, 1.0), (1.0, 1.28, 0.48))  # F/I/W
DELAYS = ((0.0, 0.0), (0.25, 0.25), (0.25, 2.0), (2.0, 0.25), (2.0, 2.0))
SIX_POINTS = [(regions, delay) for regions in (2, 4) for delay in DELAYS[2:]]
US = 1000  # T_F
NUM_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        spreads: of the times of a stage: 0.4 is +-40 %.
        memories: in microbatches per rank, over the number of ranks.
        share: of the instances that are to be within the wanted gap.
        seeds: of the instances, of which the first N are planned.
    """

    name: str
    ranks: int
    microbatches: int
    wanted_gap: float
    time_limit_s: float
    pattern: Pattern = Pattern.ONE_PER_RANK
    spreads: tuple[float, ...] = (0.0, 0.4)
    memories: tuple[int, ...] = (1, 2)
    share: float = 0.95
    seeds: Sequence[int] = range(1000)


ROWS = (
    Row("8x16", 8, 16, 0.002, 1.0),
    Row("16x32", 16, 32, 0.002, 3.0),
    Row("64x256-equal", 64, 256, 0.002, 1.0, spreads=(0.0,)),
    Row("64x256-unequal", 64, 256, 0.01, 10.0, spreads=(0.4,)),
    Row("1024x4096-equal", 1024, 4096, 0.01, 60.0, spreads=(0.0,), seeds=(4, 20)),
    Row("1024x4096-unequal", 1024, 4096, 0.02, 60.0, spreads=(0.4,), seeds=(4, 20)),
    Row("wave", 8, 32, 0.005, 5.0, pattern=Pattern.WAVE, memories=(2,)),
)


def instance(row: Row, seed: int) -> Problem:
    """The seeded instance of a row."""
    grid = list(itertools.product(RATIOS, row.spreads, row.memories, (2, 4), DELAYS))
    random.Random(0).shuffle(grid)
    ratio, spread, memory, regions, delay = grid[seed % len(grid)]
    rng = random.Random(seed)
    return chain(row, delay, regions, memory, ratio, lambda: 1 + spread * (2 * rng.random() - 1))


def chain(
    row: Row,
    delay: tuple[float, float],
    regions: int,
    memory: int,
    ratio: tuple[float, float, float],
    factor: Callable[[], float],
) -> Problem:
    """Stages by the row's pattern over regions in a row; each op is some factor off its ratio."""
    visits = 2 if row.pattern is Pattern.WAVE else 1
    forward, backward, weight = ratio
    stages = [
        {
            "rank": rank,
            "forward_us": round(forward * US / visits * factor()),
            "backward_input_us": round(backward * US / visits * factor()),
            "backward_weight_us": round(weight * US / visits * factor()),
            "activation_bytes": 1000 // visits,
            "output_bytes": NUM_BYTES,
        }
        for rank in row.pattern.positions(row.ranks, visits)
    ]
    ranks = clusters(row.ranks, regions, memory)
    data = {"num_microbatches": row.microbatches, "ranks": ranks, "stages": stages}
    return Problem.model_validate({**data, "links": links(regions, delay)})


def clusters(num_ranks: int, regions: int, memory: int) -> list[dict[str, object]]:
    """Ranks over regions in a row; memory in microbatches per rank."""
    return [
        {
            "cluster": f"r{rank * regions // num_ranks}",
            "memory_limit_bytes": memory * num_ranks * 1000,
        }
        for rank in range(num_ranks)
    ]


def links(regions: int, delay: tuple[float, float]) -> list[dict[str, object]]:
    """All regions are linked; latency grows with the distance in the row."""
    latency, occupancy = delay
    rate = NUM_BYTES / (occupancy * US * 1e-6) if occupancy else None
    return [
        {
            "src": f"r{src}",
            "dst": f"r{dst}",
            "latency_us": abs(src - dst) * latency * US,
            "bandwidth_bytes_per_s": rate,
        }
        for src in range(regions)
        for dst in range(regions)
        if src != dst and (latency or occupancy)
    ]


def run_row(row: Row, seeds: Iterable[int]) -> None:
    """Plans the instances and prints the line."""
    made = [_timed(instance(row, seed), row) for seed in seeds]
    gaps = sorted(each.gap for each, _ in made)
    within = sum(gap <= row.wanted_gap for gap in gaps) / len(gaps)
    longest = max(seconds for _, seconds in made)
    verdict = "ok" if within >= row.share else "MISSED"
    print(
        f"{row.name:16} {within:4.0%} within {row.wanted_gap:.1%} in {row.time_limit_s:g} s  "
        f"median {_at(gaps, 0.5):.3%}  p95 {_at(gaps, 0.95):.3%}  worst {gaps[-1]:.3%}  "
        f"longest {longest:.1f} s  {_memory_gib():.1f} GiB  {verdict}",
        flush=True,
    )


def _timed(problem: Problem, row: Row) -> tuple[Plan, float]:
    started = time.perf_counter()
    budget = Budget(time_limit_s=row.time_limit_s, gap=row.wanted_gap)
    return plan(problem, budget=budget), time.perf_counter() - started


def _memory_gib() -> float:
    """Most that the process has held so far, in all rows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _at(values: list[float], share: float) -> float:
    return values[max(0, math.ceil(share * len(values)) - 1)]


def run_placements(time_limit_s: float = 6.0) -> None:
    """8 ranks x 16, memory 1x: any placement against equal stages, one per rank or in a wave."""
    ratios = []
    budget = Budget(time_limit_s=time_limit_s)
    for regions, delay in SIX_POINTS:
        problem = layers_problem(regions, delay)
        known = {
            pattern.value: plan(place(problem, pattern, num_stages_per_rank=visits), budget=budget)
            for pattern, visits in ((Pattern.ONE_PER_RANK, 1), (Pattern.WAVE, 2))
        }
        found = plan(problem, budget=budget)
        times = {name: _in_forwards(made) for name, made in known.items()}
        ratios.append(_in_forwards(found) / min(times.values()))
        print(
            f"  {regions} regions {delay}: "
            + ", ".join(f"{name} {times[name]:.2f} ({known[name].status})" for name in known)
            + f", any {_in_forwards(found):.2f} on {found.problem.rank_of_stage}, "
            f"layers {[len(range(*stage.layers or ())) for stage in found.problem.stages]}",
            flush=True,
        )
    shorter = 1 - math.prod(ratios) ** (1 / len(ratios))
    print(f"placements       {shorter:.1%} shorter on the geometric mean (wanted 4 %)")


def _in_forwards(made: Plan) -> float:
    return made.timeline.makespan_ns / US / 1000


def layers_problem(regions: int, delay: tuple[float, float]) -> Problem:
    """96 equal layers for 8 ranks: 1 to 4 stages on each come out even."""
    layer = {
        "forward_us": US / 12,
        "backward_input_us": US / 12,
        "backward_weight_us": US / 12,
        "activation_bytes": 1000,
        "output_bytes": NUM_BYTES,
    }
    ranks = clusters(8, regions, 1)
    for rank in ranks:
        rank["memory_limit_bytes"] = 8 * 12 * 1000
    return Problem.model_validate(
        {
            "num_microbatches": 16,
            "ranks": ranks,
            "layers": [layer] * 96,
            "links": links(regions, delay),
        }
    )


def run_heterogeneous(num_seeds: int) -> None:
    """Unequal everything: never worse than a fixed schedule; the median gap in one second."""
    gaps, worse = [], 0
    for seed in range(num_seeds):
        problem = heterogeneous(seed)
        made = plan(problem, budget=Budget(time_limit_s=1.0))
        gaps.append(made.gap)
        for method in METHODS.values():
            if not method.is_search:
                try:
                    fixed = plan(problem, method=method.name)
                except (InputError, InfeasibleError):
                    continue  # another placement, or more memory
                worse += fixed.timeline.makespan_ns < made.timeline.makespan_ns
    gaps.sort()
    print(
        f"heterogeneous    {num_seeds} seeds, {worse} worse than a fixed schedule, "
        f"median gap {_at(gaps, 0.5):.3%} (wanted 2 %), p95 {_at(gaps, 0.95):.3%}, "
        f"worst {gaps[-1]:.3%}"
    )


def heterogeneous(seed: int) -> Problem:
    """2 to 12 ranks, unequal times, sizes, memory and asymmetric links."""
    rng = random.Random(seed)
    num_ranks, num_microbatches = rng.randint(2, 12), rng.randint(4, 24)
    regions = rng.randint(1, min(4, num_ranks))
    ranks = clusters(num_ranks, regions, 1)
    for rank in ranks:
        rank["memory_limit_bytes"] = rng.randint(num_ranks // 2 + 1, 2 * num_ranks) * 1500
    stages = [
        {
            "rank": rank,
            "forward_us": rng.randint(300, 1500),
            "backward_input_us": rng.randint(300, 1500),
            "backward_weight_us": rng.randint(100, 1500),
            "activation_bytes": (size := rng.randint(500, 1500)),
            "freed_by_backward_input_bytes": rng.randint(0, size // 2),
            "output_bytes": rng.randint(200_000, NUM_BYTES),
        }
        for rank in range(num_ranks)
    ]
    there = links(regions, (1.0, 1.0))
    for link in there:
        link["latency_us"] = rng.randint(0, 4000)
        link["bandwidth_bytes_per_s"] = rng.uniform(4e8, 4e9)
    return Problem.model_validate(
        {"num_microbatches": num_microbatches, "ranks": ranks, "stages": stages, "links": there}
    )


def main() -> None:
    """Runs the rows that are asked for, or all."""
    names = [*(row.name for row in ROWS), "placements", "heterogeneous"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(names))
    parser.add_argument("--instances", type=int, default=50)
    arguments = parser.parse_args()
    wanted = arguments.rows or names
    os.environ.setdefault(SWITCH, "always")
    plan(instance(ROWS[0], 0), method="optimal")  # loads solver and loops: a row measures planning
    for row in ROWS:
        if row.name in wanted:
            run_row(row, row.seeds[: arguments.instances])
    if "placements" in wanted:
        run_placements()
    if "heterogeneous" in wanted:
        run_heterogeneous(4 * arguments.instances)


if __name__ == "__main__":
    main()
