"""The codecs of a run's links: from the configuration to the problem, with measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from statistics import median
from typing import Literal

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.config import Config
from crosspipe_ray.engine.codec_rates import CodecRates
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.problem import Codec, Link, Problem
from crosspipe_ray.topology import clusters_of

_ELEMENT_BYTES: dict[str, Literal[2, 4]] = {"float32": 4, "bfloat16": 2}


def codecs_of(config: Config) -> dict[tuple[str, str], CodecKind]:
    """Codec of each direction between two regions that has one."""
    return {
        direction: link.codec
        for link in config.cluster.links
        if link.codec != "none"
        for direction in link.directions
    }


def with_codecs(problem: Problem, config: Config, rates: Iterable[CodecRates]) -> Problem:
    """The problem with the configured codecs on its links, and no others.

    Args:
        problem: with links.
        config: names the codecs.
        rates: of the codecs on all ranks; the medians count. None of one: it counts no time.
    """
    kinds, measured = codecs_of(config), list(rates)
    links = []
    for link in problem.links:
        kind = kinds.get(_clusters(problem, link))
        links.append(link.model_copy(update={"codec": kind and _codec(kind, config, measured)}))
    return problem.with_links(links)


def measured_rates(profiles: Iterable[Iterable[LayerCosts]]) -> Iterator[CodecRates]:
    """All that the ranks have measured."""
    for costs in chain.from_iterable(profiles):
        yield from costs.codecs


def planned_rates(problem: Problem) -> Iterator[CodecRates]:
    """What the links of an earlier problem say, so that another one can start from it."""
    for link in problem.links:
        codec = link.codec
        if codec and codec.encode_bytes_per_s and codec.decode_bytes_per_s:
            yield CodecRates(codec.kind, codec.encode_bytes_per_s, codec.decode_bytes_per_s)


def planned_codecs(problem: Problem) -> dict[tuple[str, str], CodecKind]:
    """Codec of each direction between two clusters that has one."""
    return {
        _clusters(problem, link): link.codec.kind
        for link in problem.links
        if link.codec is not None
    }


def _clusters(problem: Problem, link: Link) -> tuple[str, str]:
    return clusters_of([rank.cluster for rank in problem.ranks], link.src, link.dst)


def _codec(kind: CodecKind, config: Config, measured: Iterable[CodecRates]) -> Codec:
    """Codec of a link; its rates are the medians over what was measured."""
    rates = [each for each in measured if each.kind == kind]
    return Codec(
        kind=kind,
        element_bytes=_ELEMENT_BYTES[config.training.dtype],
        encode_bytes_per_s=median(each.encode_bytes_per_s for each in rates) if rates else None,
        decode_bytes_per_s=median(each.decode_bytes_per_s for each in rates) if rates else None,
    )
