"""An emulated WAN without root: ranks of this process, with the links inside their transports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crosspipe_ray.engine.transports import LinkShape, LoopbackHub, ShapedTransport, Transport
from crosspipe_ray.errors import InputError
from crosspipe_ray.testing.wan import LinkSettings, WanSpec

_NS_PER_S = 1_000_000_000


def shaped_transports(
    spec: WanSpec, rank_regions: Sequence[str], *, clock_dir: Path
) -> list[Transport]:
    """One transport per rank, each usable from a thread of its own.

    A link is shared by all ranks of its two regions, as in the WAN of namespaces. What it carries
    are whole messages, not packets: none is lost.

    Args:
        spec: regions and links.
        rank_regions: region of each rank.
        clock_dir: an empty folder.

    Raises:
        InputError: a link with losses, or a region that is not in the WAN.
    """
    hub = LoopbackHub(len(rank_regions))
    links = {
        (src, dst): _shape(spec, (src_region, dst_region))
        for src, src_region in enumerate(rank_regions)
        for dst, dst_region in enumerate(rank_regions)
        if src_region != dst_region
    }
    return [
        ShapedTransport(hub.transport(rank), links=links, clock_dir=clock_dir)
        for rank in range(len(rank_regions))
    ]


def _shape(spec: WanSpec, pair: tuple[str, str]) -> LinkShape:
    settings: LinkSettings | None = spec.directed_links.get(pair)
    name = "->".join(pair)
    if settings is None:
        raise InputError(f"no link {name} in this WAN")
    if settings.loss:
        raise InputError(f"{name}: loss: messages cannot be lost; this needs the fixture 'wan'")
    rate = settings.shape.bytes_per_s
    return LinkShape(
        channel=name,
        latency_ns=settings.shape.latency_ns,
        jitter_ns=settings.shape.jitter_ns,
        occupancy_ns=lambda num_bytes: round(num_bytes * _NS_PER_S / rate) if rate else 0,
    )
