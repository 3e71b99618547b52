"""Links that are injected into a rank's transport, so that a laptop shows what the WAN would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crosspipe_ray.config import ClusterConfig, Config
from crosspipe_ray.engine.transports import LinkShape, ShapedTransport, Transport
from crosspipe_ray.problem import Problem
from crosspipe_ray.topology import topology_of


@dataclass(frozen=True, slots=True)
class Emulation:
    """A WAN to inject.

    Attributes:
        problem: whose links are emulated.
        clock_dir: for the clocks of channels that several ranks share, the same for all of them.
        jitter_us: added at random per message, by (cluster, cluster).
        seed: of the jitter.
    """

    problem: Problem
    clock_dir: Path
    jitter_us: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seed: int = 0


def emulation_of(config: Config, problem: Problem, clock_dir: Path) -> Emulation | None:
    """What a run is to inject: the links of its plan's problem, where it emulates any."""
    cluster = config.cluster
    if not cluster.emulate_links:
        return None
    return Emulation(problem, clock_dir, jitter_of(cluster), config.seed)


def jitter_of(cluster: ClusterConfig) -> dict[tuple[str, str], float]:
    """The configured jitter of each direction, in microseconds."""
    jitter: dict[tuple[str, str], float] = {}
    for link in cluster.links:
        jitter |= dict.fromkeys(link.directions, link.jitter_us)
    return jitter


def emulated(inner: Transport, emulation: Emulation | None) -> Transport:
    """Wraps a transport in emulated links; unchanged where there are none."""
    if emulation is None:
        return inner
    shapes = _shapes(emulation)
    if not shapes:
        return inner
    return ShapedTransport(inner, links=shapes, seed=emulation.seed, clock_dir=emulation.clock_dir)


def _shapes(emulation: Emulation) -> dict[tuple[int, int], LinkShape]:
    """What to inject between each pair of ranks so that the links are those of the problem."""
    topology = topology_of(emulation.problem)
    clusters = [rank.cluster for rank in emulation.problem.ranks]
    return {
        (src, dst): LinkShape(
            channel=topology.channels[route.channel],
            latency_ns=route.latency_ns,
            occupancy_ns=route.occupancy_ns,
            jitter_ns=round(emulation.jitter_us.get((clusters[src], clusters[dst]), 0.0) * 1000),
        )
        for (src, dst), route in topology.routes.items()
    }
