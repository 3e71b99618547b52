"""From measured links to the links of a problem: each over the carrier that suits its messages.

Several carriers of a link may have been measured, and the configuration may rule some out. Of the
rest that one counts over which the messages of the plan take the least: occupancy and latency,
summed over their sizes. Its times are the planner's, and its name stands beside them in the plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, permutations
from statistics import median_low

from crosspipe_ray.carriers import Carrier, Carriers, Wish
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.errors import InputError
from crosspipe_ray.links.profile import End, LinkProfile, MeasuredLink
from crosspipe_ray.problem import Layer, Problem
from crosspipe_ray.topology import clusters_of, topology_of

Wishes = Callable[[str, str], Wish]
Sizes = Mapping[tuple[int, int], Collection[int]]

# Less than this is within the error of a measurement: not worth another transport or more streams.
_LEAST_GAIN = 0.05
_SIMPLEST_FIRST = ("collective", "object_store", "streams")


def anything(src: str, dst: str) -> Wish:  # noqa: ARG001 - the same for all pairs
    """Whatever is the fastest."""
    return Wish("auto")


def with_measured_links(
    problem: Problem, profile: LinkProfile, wishes: Wishes = anything
) -> Problem:
    """The problem with measured links in place of its own, whose codecs they keep.

    Args:
        problem: with stages, or with layers that any two ranks may have to exchange.
        profile: every carrier that was measured.
        wishes: what is asked of the links between two clusters.

    Raises:
        InputError: two clusters of the problem have no measured link over what is wished for, or
            the ranks that were measured are others.
    """
    clusters = [rank.cluster for rank in problem.ranks]
    sizes, routes = message_sizes(problem), topology_of(problem).routes
    links = []
    for candidates in candidates_of(profile, clusters, wishes):
        ends = candidates[0].src, candidates[0].dst
        lanes = _lanes(clusters, *ends)
        codec = next((routes[lane].link.codec for lane in lanes if lane in routes), None)
        plain = chain.from_iterable(sizes.get(lane, ()) for lane in lanes)
        sent = sorted(codec.encoded_bytes(size) if codec else size for size in plain)
        typical = median_low(sent) if sent else None
        link = fastest(candidates, sent).link(message_bytes=typical)
        links.append(link.model_copy(update={"codec": codec}))
    return problem.with_links(links)


def candidates_of(
    profile: LinkProfile, clusters: Sequence[str], wishes: Wishes
) -> list[list[MeasuredLink]]:
    """Per measured link of a run, what it was measured with and the wishes allow.

    Raises:
        InputError: as `with_measured_links` does.
    """
    allowed: dict[tuple[End, End], list[MeasuredLink]] = defaultdict(list)
    for link in profile.links:
        if {link.src, link.dst} <= {*clusters, *range(len(clusters))}:
            pair = clusters_of(clusters, link.src, link.dst)
            if wishes(*pair).allows(link.carrier):
                allowed[link.src, link.dst].append(link)
    measured = [host.region for host in profile.hosts]
    if any(isinstance(src, int) for src, _ in allowed) and measured != list(clusters):
        raise InputError(
            f"link profile: measured between ranks in {', '.join(measured)}, the run's are in "
            f"{', '.join(clusters)}; run `crosspipe probe --all-pairs` with its --config"
        )
    for pair in permutations(dict.fromkeys(clusters), 2):
        if pair not in allowed and not allowed.keys() >= set(_lanes(clusters, *pair)):
            raise InputError(
                f"link profile: no measured link {pair[0]}->{pair[1]} over {wishes(*pair)}; "
                "run `crosspipe probe` on this cluster"
            )
    return list(allowed.values())


def fastest(candidates: Sequence[MeasuredLink], sizes: Collection[int]) -> MeasuredLink:
    """The carrier over which messages of these sizes take the least; the simplest among equals.

    Args:
        candidates: measurements of one link.
        sizes: of the messages, in bytes; none: those of the smallest measured size count.
    """
    sizes = sizes or [candidates[0].points[0].num_bytes]
    delays_us = [sum(each.delay_us(size) for size in sizes) for each in candidates]
    enough_us = min(delays_us) / (1 - _LEAST_GAIN)
    good = [
        each for each, delay_us in zip(candidates, delays_us, strict=True) if delay_us <= enough_us
    ]
    return min(good, key=lambda each: _complexity(each.carrier))


def message_sizes(problem: Problem) -> Sizes:
    """Bytes of the messages of one microbatch over every directed pair of ranks, before codecs.

    Activations go one way and gradients the other. Where only layers are given, any pair may come
    to carry what any layer passes on.
    """
    if problem.layers:
        return dict.fromkeys(
            permutations(range(len(problem.ranks)), 2), _sizes_between(problem.layers)
        )
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for costs in stage_costs(problem):
        for transfer in costs.transfers:
            if transfer.src != transfer.dst:
                sizes[transfer.src, transfer.dst].append(transfer.plain_bytes)
    return sizes


def carriers_of(problem: Problem, wishes: Wishes = lambda *_: Wish()) -> Carriers:
    """What carries the messages of each directed pair of ranks, frozen for a run.

    Args:
        problem: of a plan; what its links name counts.
        wishes: for pairs whose link names nothing, and for those without a link.
    """
    routes = topology_of(problem).routes
    clusters = [rank.cluster for rank in problem.ranks]

    def carrier(src: int, dst: int) -> Carrier:
        named = routes[src, dst].link.carrier if (src, dst) in routes else None
        return named or wishes(clusters[src], clusters[dst]).unmeasured

    return {pair: carrier(*pair) for pair in permutations(range(len(clusters)), 2)}


def named_carriers(problem: Problem) -> dict[str, Carrier]:
    """What the links of a problem name, by link as in ``us->eu``."""
    named = ((f"{link.src}->{link.dst}", link.carrier) for link in problem.links)
    return {name: carrier for name, carrier in named if carrier is not None}


def _sizes_between(layers: Sequence[Layer]) -> list[int]:
    """Of activations and gradients between any two neighbours."""
    forward = [layer.output_bytes for layer in layers[:-1]]
    backward = [
        output_bytes if layer.input_gradient_bytes is None else layer.input_gradient_bytes
        for output_bytes, layer in zip(forward, layers[1:], strict=True)
    ]
    return forward + backward


def _complexity(carrier: Carrier) -> tuple[int, int]:
    return _SIMPLEST_FIRST.index(carrier.transport), carrier.num_streams


def _lanes(clusters: Sequence[str], src: End, dst: End) -> list[tuple[int, int]]:
    """Directed pairs of ranks that a link is for."""
    if isinstance(src, int) and isinstance(dst, int):
        return [(src, dst)]
    ranks = permutations(range(len(clusters)), 2)
    return [(one, other) for one, other in ranks if (clusters[one], clusters[other]) == (src, dst)]
