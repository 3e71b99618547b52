"""Measures the links of a cluster: pairs of ranks, one after another, over each carrier.

Only the test for shared channels has two links busy at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from crosspipe_ray.actors.cluster import alive_nodes
from crosspipe_ray.actors.group import clock_folder, started
from crosspipe_ray.actors.probed_rank import TIMEOUT_S, Load, ProbeGroup
from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.config import Config
from crosspipe_ray.engine.links import Emulation, jitter_of
from crosspipe_ray.engine.planning import links_of
from crosspipe_ray.engine.probing import ProbeSettings
from crosspipe_ray.errors import ClusterError
from crosspipe_ray.links.estimate import measured_link
from crosspipe_ray.links.fit import groups_of, share_a_channel
from crosspipe_ray.links.profile import HostFacts, LinkProfile, MeasuredLink
from crosspipe_ray.problem import Link, Problem, Rank, Stage
from crosspipe_ray.program import Lane

DEFAULT_CARRIERS = (
    Carrier("collective"),
    Carrier("object_store"),
    *(Carrier("streams", number) for number in (1, 4, 8, 16)),
)
_NUM_TRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """What to measure.

    Attributes:
        regions: of each rank.
        label: node label that holds a region's name.
        carriers: each is measured by itself.
        all_pairs: every pair of ranks; else the first rank of each region stands for it.
        settings: of every lane.
        emulated: links to inject; None: they are as they are.
        jitter_us: of these, by (region, region).
        max_age_hours: for which the result may be planned with.
        streams_port: of rank 0, for streams; the next ones follow.
    """

    regions: Sequence[str]
    label: str = "region"
    carriers: Sequence[Carrier] = DEFAULT_CARRIERS
    all_pairs: bool = False
    settings: ProbeSettings = field(default_factory=ProbeSettings)
    emulated: Problem | None = None
    jitter_us: Mapping[tuple[str, str], float] = field(default_factory=dict)
    max_age_hours: float = 168.0
    streams_port: int | None = None

    @property
    def ranks(self) -> tuple[str, ...]:
        """Regions of the ranks that are started."""
        return tuple(self.regions if self.all_pairs else dict.fromkeys(self.regions))


def request_of(config: Config, *, all_pairs: bool = False, **options: Any) -> ProbeRequest:
    """What to measure for a run; its links are emulated where the run emulates them."""
    settings = config.cluster
    request = ProbeRequest(
        regions=settings.rank_regions,
        label=settings.region_label,
        all_pairs=all_pairs,
        jitter_us=jitter_of(settings),
        streams_port=settings.streams_port,
        **options,
    )
    if not settings.emulate_links:
        return request
    return replace(request, emulated=_linked(request.ranks, links_of(settings)))


def _linked(regions: Sequence[str], links: tuple[Link, ...]) -> Problem:
    """Ranks with nothing to compute on these links."""
    stages = tuple(
        Stage(rank=rank, forward_us=0, backward_input_us=0, backward_weight_us=0)
        for rank in range(len(regions))
    )
    ranks = tuple(Rank(cluster=region) for region in regions)
    return Problem(num_microbatches=1, ranks=ranks, stages=stages, links=links)


def regions_of_cluster(label: str) -> list[str]:
    """The region of each node of the connected cluster that has one."""
    return sorted(node["Labels"][label] for node in alive_nodes() if label in node["Labels"])


def probe(
    request: ProbeRequest, *, on_link: Callable[[MeasuredLink], None] = lambda _: None
) -> LinkProfile:
    """Measures the links of the connected cluster.

    Args:
        request: what to measure.
        on_link: is told of every link when it has been measured.

    Raises:
        ClusterError: there are not two ranks to measure between.
        RunError: a rank failed.
    """
    if len(request.ranks) < 2:
        raise ClusterError(
            f"a link needs two regions with the label {request.label}, or --all-pairs and two "
            f"ranks; there are {list(request.regions)}"
        )
    links: list[MeasuredLink] = []
    hosts: list[HostFacts] = []
    channels: dict[str, str] = {}
    for carrier in request.carriers:
        with (
            clock_folder() as clock_dir,
            started(ProbeGroup, request.ranks, label=request.label, timeout_s=TIMEOUT_S) as group,
        ):
            lanes = list(permutations(range(len(request.ranks)), 2))
            group.connect(
                uniform(len(request.ranks), carrier),
                lanes,
                emulation=_emulation(request, clock_dir),
                streams_port=request.streams_port,
            )
            hosts = group.facts(request.ranks)
            measured = dict(_measure(group, lanes, hosts, carrier, request, on_link))
            if not links:  # a channel is the network's: the first carrier speaks for all
                channels = _find_channels(group, measured, request.ranks)
            links += measured.values()
            group.close()
    return LinkProfile(
        measured_at=datetime.now(timezone.utc),
        max_age_hours=request.max_age_hours,
        hosts=tuple(hosts),
        links=tuple(link.model_copy(update={"channel": channels.get(link.name)}) for link in links),
    )


def _emulation(request: ProbeRequest, clock_dir: Path) -> Emulation | None:
    if request.emulated is None:
        return None
    return Emulation(request.emulated, clock_dir, request.jitter_us)


def _measure(
    group: ProbeGroup,
    lanes: Sequence[Lane],
    hosts: Sequence[HostFacts],
    carrier: Carrier,
    request: ProbeRequest,
    on_link: Callable[[MeasuredLink], None],
) -> Iterator[tuple[Lane, MeasuredLink]]:
    """One lane after another, so that none disturbs another."""
    for src, dst in lanes:
        exchanges = group.measure((src, dst), request.settings)
        boots = {hosts[src].boot_id, hosts[dst].boot_id}
        link = measured_link(
            exchanges,
            src=src if request.all_pairs else request.ranks[src],
            dst=dst if request.all_pairs else request.ranks[dst],
            carrier=carrier,
            has_common_clock=len(boots) == 1 and None not in boots,
        )
        on_link(link)
        yield (src, dst), link


def _find_channels(
    group: ProbeGroup, links: dict[Lane, MeasuredLink], regions: Sequence[str]
) -> dict[str, str]:
    """Names of the channels that several links share, by the name of the link."""
    loads = {lane: Load.of(link) for lane, link in links.items()}
    pairs = list(suspects(links, regions))
    alone_s = {
        lane: min(group.seconds_of([(lane, loads[lane])]) for _ in range(2))
        for lane in dict.fromkeys(lane for pair in pairs for lane in pair)
    }

    def share(first: Lane, second: Lane) -> bool:
        """A busy host, too, may hold up two loads once; a channel does so every time."""
        both = [(first, loads[first]), (second, loads[second])]
        return all(
            share_a_channel((alone_s[first], alone_s[second]), group.seconds_of(both))
            for _ in range(_NUM_TRIES)
        )

    sharing = [
        (links[first].name, links[second].name) for first, second in pairs if share(first, second)
    ]
    return groups_of([link.name for link in links.values()], sharing)


def suspects(lanes: Iterable[Lane], regions: Sequence[str]) -> Iterator[tuple[Lane, Lane]]:
    """Pairs of lanes that may share a channel between regions.

    The first lane of each direction between two regions stands for it: it is compared with the
    others of its direction and with the first ones of other directions.

    >>> list(suspects([(0, 2), (1, 2), (2, 0), (0, 1)], ["us", "us", "eu"]))
    [((0, 2), (1, 2)), ((0, 2), (2, 0))]
    """
    by_direction: dict[tuple[str, str], list[Lane]] = {}
    for src, dst in lanes:
        if regions[src] != regions[dst]:
            by_direction.setdefault((regions[src], regions[dst]), []).append((src, dst))
    for first, *others in by_direction.values():
        yield from ((first, other) for other in others)
    yield from combinations([first for first, *_ in by_direction.values()], 2)
