"""The transport of one rank: real links, with a WAN emulated on top where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from crosspipe_ray.config import ClusterConfig, Config
from crosspipe_ray.engine.transports import LinkShape, ShapedTransport, Transport
from crosspipe_ray.problem import Problem
from crosspipe_ray.topology import topology_of


def link_shapes(
    problem: Problem, jitter_us: Mapping[tuple[str, str], float] | None = None
) -> dict[tuple[int, int], LinkShape]:
    """What to inject between each pair of ranks so that the links are those of the problem.

    Args:
        problem: whose links are emulated.
        jitter_us: added at random per message, by (cluster, cluster).
    """
    topology = topology_of(problem)
    jitter_us = jitter_us or {}
    clusters = [rank.cluster for rank in problem.ranks]
    return {
        (src, dst): LinkShape(
            channel=topology.channels[route.channel],
            latency_ns=route.latency_ns,
            occupancy_ns=route.occupancy_ns,
            jitter_ns=round(jitter_us.get((clusters[src], clusters[dst]), 0.0) * 1000),
        )
        for (src, dst), route in topology.routes.items()
    }


def jitter_of(cluster: ClusterConfig) -> dict[tuple[str, str], float]:
    """The configured jitter of each direction, in microseconds."""
    jitter = {}
    for link in cluster.links:
        jitter[link.src, link.dst] = link.jitter_us
        if link.both_ways:
            jitter[link.dst, link.src] = link.jitter_us
    return jitter


def shaped(
    inner: Transport,
    problem: Problem,
    *,
    jitter_us: Mapping[tuple[str, str], float] | None = None,
    seed: int = 0,
    clock_dir: Path | None = None,
) -> Transport:
    """Wraps a transport in the problem's links; unchanged where it has none."""
    shapes = link_shapes(problem, jitter_us)
    return ShapedTransport(inner, links=shapes, seed=seed, clock_dir=clock_dir) if shapes else inner


def emulated(
    inner: Transport, config: Config, problem: Problem, *, clock_dir: Path | None = None
) -> Transport:
    """Wraps a transport in a run's links, where the configuration asks for it."""
    if not config.cluster.emulate_links:
        return inner
    jitter_us = jitter_of(config.cluster)
    return shaped(inner, problem, jitter_us=jitter_us, seed=config.seed, clock_dir=clock_dir)
