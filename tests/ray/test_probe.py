"""Links between real actors are measured as they were emulated."""

import pytest

from crosspipe_ray.actors.probe import ProbeRequest, probe
from crosspipe_ray.carriers import Carrier
from crosspipe_ray.engine.probing import ProbeSettings
from crosspipe_ray.links.profile import LinkProfile
from crosspipe_ray.problem import Link, Problem, Rank, Stage

pytestmark = pytest.mark.ray
KIB = 1024
QUICK = ProbeSettings(
    sizes=(1, 64 * KIB, 1024 * KIB), num_pings=15, num_repeats=5, train_bytes=1024 * KIB
)


def emulated(regions: tuple[str, ...], *links: Link) -> Problem:
    stages = tuple(
        Stage(rank=rank, forward_us=0, backward_input_us=0, backward_weight_us=0)
        for rank in range(len(regions))
    )
    ranks = tuple(Rank(cluster=region) for region in regions)
    return Problem(num_microbatches=1, ranks=ranks, stages=stages, links=links)


def channels(profile: LinkProfile) -> dict[str, str | None]:
    return {link.name: link.channel for link in profile.links}


@pytest.mark.usefixtures("two_regions")
def test_links_between_regions_are_found_again_over_each_transport() -> None:
    there = Link(src="us", dst="eu", latency_us=20_000, bandwidth_bytes_per_s=50e6)
    back = Link(src="eu", dst="us", latency_us=5_000, bandwidth_bytes_per_s=20e6)
    carriers = (Carrier(), Carrier("object_store"), Carrier("streams", 2))
    seen: list[str] = []
    profile = probe(
        ProbeRequest(
            regions=("us", "us", "eu"),
            carriers=carriers,
            settings=QUICK,
            emulated=emulated(("us", "eu"), there, back),
        ),
        on_link=lambda link: seen.append(f"{link.carrier} {link.name}"),
    )
    assert seen == [f"{carrier} {name}" for carrier in carriers for name in ("us->eu", "eu->us")]
    assert [host.region for host in profile.hosts] == ["us", "eu"]
    for link in profile.links:
        true = there if link.src == "us" else back
        assert link.has_common_clock
        # An emulated link hides the transport's own time, if that is shorter.
        smallest_us = link.latency_us.value + link.message_overhead_us.value
        assert 0.98 < smallest_us / true.latency_us < 1.4
        assert true.bandwidth_bytes_per_s is not None
        assert link.bandwidth_bytes_per_s.value == pytest.approx(
            true.bandwidth_bytes_per_s, rel=0.1
        )
    assert set(channels(profile).values()) == {None}


def test_links_that_share_a_channel_are_found(two_regions: tuple[str, ...]) -> None:
    shared = Link(src="us", dst="eu", bandwidth_bytes_per_s=20e6)
    own = Link(src="eu", dst="us", bandwidth_bytes_per_s=20e6, channel="per_pair")
    profile = probe(
        ProbeRequest(
            regions=two_regions,
            carriers=(Carrier(),),
            all_pairs=True,
            settings=ProbeSettings(
                sizes=(1, 128 * KIB), num_pings=3, num_repeats=2, train_bytes=1024 * KIB
            ),
            emulated=emulated(two_regions, shared, own),
        )
    )
    assert len(profile.links) == 12
    names = ("0->2", "0->3", "1->2", "1->3")
    for name, channel in channels(profile).items():
        assert channel == (" + ".join(names) if name in names else None)
