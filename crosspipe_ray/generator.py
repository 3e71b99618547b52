"""Problems from a few numbers: equal stages over clusters in a row."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from pydantic import ValidationError

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.parsing import first_problem
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Codec, Link, Problem, Rank, Stage

_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The numbers. Times are per microbatch and rank, and shared out to the rank's stages.

    Attributes:
        clusters: names in pipeline order; ranks are shared out evenly, neighbours are linked.
        latency_ratio: latency between clusters over ``forward_us`` (the paper's T_lat / T_F).
        bandwidth_ratio: occupancy of the link by one message over ``forward_us`` (T_bw / T_F).
        memory: rank's limit in units of what 1F1B's first rank holds (one microbatch per rank);
            None: no limit.
        codec: on all links, as if coding took no time; ``bandwidth_ratio`` is that without it.
        num_stages_per_rank: default: 1, or 2 where the pattern visits a rank more than once.
    """

    num_ranks: int
    num_microbatches: int
    clusters: tuple[str, ...] = ("us", "eu")
    pattern: Pattern = Pattern.ONE_PER_RANK
    num_stages_per_rank: int | None = None
    forward_us: float = 1000.0
    backward_input_us: float = 1000.0
    backward_weight_us: float = 1000.0
    activation_bytes: int = 4000
    output_bytes: int = 1_000_000
    latency_ratio: float = 0.0
    bandwidth_ratio: float = 0.0
    memory: float | None = None
    codec: CodecKind | None = None

    @property
    def num_visits(self) -> int:
        """Stages on each rank."""
        return self.num_stages_per_rank or (1 if self.pattern is Pattern.ONE_PER_RANK else 2)


def generate(recipe: Recipe) -> Problem:
    """Makes the problem.

    Raises:
        ProblemError: numbers that do not go together; names the option.
    """
    _check(recipe)
    try:
        return _made(recipe)
    except ValidationError as failure:
        raise ProblemError(f"no problem comes of that: {first_problem(failure, Problem)}") from None


def _made(recipe: Recipe) -> Problem:
    limit = recipe.memory and round(recipe.memory * recipe.num_ranks * recipe.activation_bytes)
    clusters = [_cluster(recipe, rank) for rank in range(recipe.num_ranks)]
    positions = recipe.pattern.positions(
        recipe.num_ranks,
        recipe.num_visits,
        region_sizes=tuple(Counter(clusters).values()),
    )
    return Problem(
        num_microbatches=recipe.num_microbatches,
        ranks=tuple(Rank(cluster=cluster, memory_limit_bytes=limit) for cluster in clusters),
        stages=tuple(_stage(recipe, rank) for rank in positions),
        links=_links(recipe, list(dict.fromkeys(clusters))),
    )


def _check(recipe: Recipe) -> None:
    names = ",".join(recipe.clusters)
    if recipe.num_ranks < len(recipe.clusters):
        raise ProblemError(f"--clusters {names}: more than the {recipe.num_ranks} ranks")
    if len(set(recipe.clusters)) < len(recipe.clusters) or not all(recipe.clusters):
        raise ProblemError(f"--clusters {names}: give names that differ")
    if recipe.bandwidth_ratio and not recipe.output_bytes:
        raise ProblemError(
            f"--bandwidth-ratio {recipe.bandwidth_ratio:g}: messages of --output-bytes 0 take no "
            "time; give them a size, or no ratio"
        )
    if recipe.memory and math.isinf(recipe.memory):
        raise ProblemError("--memory inf: leave it out for no limit")
    if not recipe.pattern.allows(recipe.num_visits):
        raise ProblemError(
            f"--stages-per-rank {recipe.num_visits}: the placement "
            f"{recipe.pattern.value} is {recipe.pattern.meaning}"
        )


def _cluster(recipe: Recipe, rank: int) -> str:
    return recipe.clusters[rank * len(recipe.clusters) // recipe.num_ranks]


def _stage(recipe: Recipe, rank: int) -> Stage:
    share = recipe.num_visits
    return Stage(
        rank=rank,
        forward_us=recipe.forward_us / share,
        backward_input_us=recipe.backward_input_us / share,
        backward_weight_us=recipe.backward_weight_us / share,
        activation_bytes=recipe.activation_bytes // share,
        output_bytes=recipe.output_bytes,
    )


def _links(recipe: Recipe, clusters: list[str]) -> tuple[Link, ...]:
    """Links between neighbouring clusters, both ways."""
    occupancy_us = recipe.bandwidth_ratio * recipe.forward_us
    bandwidth = recipe.output_bytes * _US_PER_S / occupancy_us if occupancy_us else None
    pairs = list(pairwise(clusters))
    return tuple(
        Link(
            src=src,
            dst=dst,
            latency_us=recipe.latency_ratio * recipe.forward_us,
            bandwidth_bytes_per_s=bandwidth,
            codec=Codec(kind=recipe.codec) if recipe.codec else None,
        )
        for src, dst in [*pairs, *((dst, src) for src, dst in pairs)]
    )
