"""The seeded problems on which plans are measured.

Rows go through a grid, in an order drawn once for all: the five delay points of the CrossPipe
paper, 2 and 4 regions, memory 1x and 2x, F/I/W of 1/1/1 and 1/1.28/0.48, equal stages and stages
of +-40 %.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem

RATIOS = ((1.0, 1.0, 1.0), (1.0, 1.28, 0.48))  # F/I/W
DELAYS = ((0.0, 0.0), (0.25, 0.25), (0.25, 2.0), (2.0, 0.25), (2.0, 2.0))
US = 1000  # T_F
NUM_BYTES = 1_000_000


class Point(NamedTuple):
    """A point of the grid.

    Attributes:
        ratio: of F, I and W to T_F.
        spread: of the times of a stage: 0.4 is +-40 %.
        memory: in microbatches per rank, over the number of ranks.
        delay: (T_lat, T_bw) / T_F.
    """

    ratio: tuple[float, float, float]
    spread: float
    memory: int
    regions: int
    delay: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """What the instances of a row have in common.

    Attributes:
        sizes: ranks and microbatches, taken in turn.
        spreads, memories: of the grid.
        seeds: of which the first are planned.
    """

    sizes: tuple[tuple[int, int], ...]
    pattern: Pattern = Pattern.ONE_PER_RANK
    spreads: tuple[float, ...] = (0.0, 0.4)
    memories: tuple[int, ...] = (1, 2)
    seeds: Sequence[int] = range(1000)


def instance(row: Instances, seed: int) -> Problem:
    """The seeded instance of a row."""
    grid = list(itertools.product(RATIOS, row.spreads, row.memories, (2, 4), DELAYS))
    random.Random(0).shuffle(grid)
    num_ranks, num_microbatches = row.sizes[seed % len(row.sizes)]
    point = Point(*grid[seed % len(grid)])
    return chain(num_ranks, num_microbatches, row.pattern, point, random.Random(seed))


def chain(
    num_ranks: int, num_microbatches: int, pattern: Pattern, point: Point, rng: random.Random
) -> Problem:
    """Stages over regions in a row; each op is some factor off its ratio."""
    visits = 2 if pattern is Pattern.WAVE else 1
    regions = min(point.regions, num_ranks)

    def time_us(ratio: float) -> int:
        return round(ratio * US / visits * (1 + point.spread * (2 * rng.random() - 1)))

    forward, backward, weight = point.ratio
    stages = [
        {
            "rank": rank,
            "forward_us": time_us(forward),
            "backward_input_us": time_us(backward),
            "backward_weight_us": time_us(weight),
            "activation_bytes": 1000 // visits,
            "output_bytes": NUM_BYTES,
        }
        for rank in pattern.positions(num_ranks, visits)
    ]
    return Problem.model_validate(
        {
            "num_microbatches": num_microbatches,
            "ranks": clusters(num_ranks, regions, point.memory),
            "stages": stages,
            "links": links(regions, point.delay),
        }
    )


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
