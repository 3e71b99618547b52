"""Which carrier each link gets, by what was measured, what is sent and what is wished for."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from crosspipe_ray.carriers import Carrier, Wish
from crosspipe_ray.errors import InputError, PlanError
from crosspipe_ray.links.choice import (
    candidates_of,
    carriers_of,
    fastest,
    message_sizes,
    named_carriers,
    with_measured_links,
)
from crosspipe_ray.links.profile import LinkProfile, MeasuredLink
from crosspipe_ray.plan import plan_json, read_plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Codec, Layer, Link, Problem, Rank, Stage
from crosspipe_ray.topology import topology_of
from tests.unit.synthetic_links import TrueLink, measured, profile_of

KIB, MIB = 1024, 1024 * 1024
COLLECTIVE, OBJECTS, STREAMS = Carrier(), Carrier("object_store"), Carrier("streams", 4)
# One TCP connection and four of them over a WAN, a LAN with and without encryption.
SLOW_WAN, FAST_WAN = TrueLink(bandwidth_bytes_per_s=20e6), TrueLink(overhead_us=1_000)
LAN, TLS_LAN = (
    TrueLink(latency_us=100, overhead_us=20, bandwidth_bytes_per_s=3e9),
    TrueLink(latency_us=200, overhead_us=50, bandwidth_bytes_per_s=0.9e9),
)


def over(link: TrueLink, carrier: Carrier, src: int | str, dst: int | str) -> MeasuredLink:
    return measured(link, src=src, dst=dst, carrier=carrier)


def mixed_profile() -> LinkProfile:
    """A WAN between us and eu, a LAN between eu and eu2."""
    kinds = {
        frozenset(("us", "eu")): (SLOW_WAN, FAST_WAN),
        frozenset(("us", "eu2")): (SLOW_WAN, FAST_WAN),
        frozenset(("eu", "eu2")): (LAN, TLS_LAN),
    }
    links = [
        over(link, carrier, src, dst)
        for src, dst in permutations(("us", "eu", "eu2"), 2)
        for link, carrier in zip(kinds[frozenset((src, dst))], (COLLECTIVE, STREAMS), strict=True)
    ]
    return profile_of(*links, regions=("us", "eu", "eu2"))


def three_stages(*links: Link, output_bytes: int = MIB) -> Problem:
    return Problem(
        num_microbatches=2,
        ranks=tuple(Rank(cluster=name) for name in ("us", "eu", "eu2")),
        stages=tuple(
            Stage(
                rank=rank,
                forward_us=100,
                backward_input_us=100,
                backward_weight_us=100,
                output_bytes=output_bytes,
            )
            for rank in range(3)
        ),
        links=links,
    )


def everything(src: str, dst: str) -> Wish:
    assert src != dst
    return Wish("auto")


def only_collective(*_: str) -> Wish:
    return Wish("collective")


def test_links_of_opposite_character_get_different_carriers() -> None:
    problem = with_measured_links(three_stages(), mixed_profile(), everything)
    assert named_carriers(problem) == {
        "us->eu": STREAMS,
        "eu->us": STREAMS,
        "us->eu2": COLLECTIVE,  # the plan sends nothing here: the norms are small
        "eu2->us": COLLECTIVE,
        "eu->eu2": COLLECTIVE,
        "eu2->eu": COLLECTIVE,
    }
    assert carriers_of(problem)[0, 1] == STREAMS
    assert carriers_of(problem)[1, 2] == COLLECTIVE


def test_the_digest_is_that_of_the_measured_links() -> None:
    plain = three_stages()
    before = plain.sha256
    measured_ones = with_measured_links(plain, mixed_profile(), everything)
    assert measured_ones.sha256 != before
    assert measured_ones.sha256 == Problem.model_validate(measured_ones.model_dump()).sha256


def test_the_planner_counts_the_times_of_the_chosen_carrier() -> None:
    routes = topology_of(with_measured_links(three_stages(), mixed_profile(), everything)).routes
    for lane, true in (((0, 1), FAST_WAN), ((1, 2), LAN)):
        expected_us = true.overhead_us + MIB / true.bandwidth_bytes_per_s * 1e6
        assert routes[lane].occupancy_ns(MIB) == pytest.approx(1000 * expected_us, rel=0.02)
        assert routes[lane].latency_ns == pytest.approx(1000 * true.latency_us, rel=0.02)


@pytest.mark.parametrize(("num_bytes", "chosen"), [(KIB, COLLECTIVE), (8 * MIB, STREAMS)])
def test_the_size_of_the_messages_decides(num_bytes: int, chosen: Carrier) -> None:
    # A single connection is as near, and has less to do per message.
    both = [over(SLOW_WAN, COLLECTIVE, "us", "eu"), over(FAST_WAN, STREAMS, "us", "eu")]
    assert fastest(both, [num_bytes]).carrier == chosen
    assert fastest(both[::-1], [num_bytes]).carrier == chosen


def test_sizes_of_both_kinds_of_messages_count() -> None:
    """Large gradients outweigh small activations."""
    both = [over(SLOW_WAN, COLLECTIVE, "us", "eu"), over(FAST_WAN, STREAMS, "us", "eu")]
    assert fastest(both, [KIB, 8 * MIB]).carrier == STREAMS


def test_a_link_keeps_its_codec_and_is_chosen_for_what_is_left_of_the_messages() -> None:
    int8 = Codec(kind="int8")
    problem = three_stages(Link(src="us", dst="eu", codec=int8), output_bytes=64 * KIB)
    problem = with_measured_links(problem, mixed_profile(), everything)
    codecs = {(link.src, link.dst): link.codec for link in problem.links}
    assert codecs.pop(("us", "eu")) == int8
    assert set(codecs.values()) == {None}
    # 64 KiB are too much for one connection, 16.3 KiB are not.
    assert named_carriers(problem)["us->eu"] == COLLECTIVE
    assert named_carriers(problem)["eu->us"] == STREAMS


def test_the_simplest_of_equals_is_chosen() -> None:
    same = [over(FAST_WAN, Carrier("streams", k), "us", "eu") for k in (16, 4, 8)]
    assert fastest(same, [MIB]).carrier == STREAMS
    assert fastest([*same, over(FAST_WAN, OBJECTS, "us", "eu")], [MIB]).carrier == OBJECTS


def test_what_is_sent_over_a_lane_is_its_activations_and_gradients() -> None:
    problem = three_stages(output_bytes=5)
    last = problem.stages[2].model_copy(update={"input_gradient_bytes": 7})
    problem = problem.model_copy(update={"stages": (*problem.stages[:2], last)})
    assert message_sizes(problem) == {(0, 1): [5], (1, 0): [5], (1, 2): [5], (2, 1): [7]}


def test_layers_may_send_over_any_lane() -> None:
    layers = tuple(
        Layer(forward_us=1, backward_input_us=1, backward_weight_us=1, output_bytes=size)
        for size in (10, 20, 30)
    )
    problem = Problem(num_microbatches=1, ranks=(Rank(), Rank()), layers=layers)
    assert message_sizes(problem) == {lane: [10, 20, 10, 20] for lane in ((0, 1), (1, 0))}


def test_a_wish_rules_out_what_it_does_not_name() -> None:
    def wishes(src: str, dst: str) -> Wish:
        return Wish("streams", 4) if "us" in (src, dst) else Wish("streams")

    problem = with_measured_links(three_stages(), mixed_profile(), wishes)
    assert set(named_carriers(problem).values()) == {STREAMS}


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (Wish("object_store"), "object_store"),
        (Wish("streams", 8), "streams x 8"),
    ],
)
def test_a_wish_that_was_not_measured_is_named(wish: Wish, name: str) -> None:
    with pytest.raises(InputError, match=f"no measured link us->eu over {name}; run `crosspipe"):
        candidates_of(mixed_profile(), ["us", "eu", "eu2"], lambda *_: wish)


def test_a_profile_must_know_every_pair_of_regions() -> None:
    profile = profile_of(measured(TrueLink()))
    with pytest.raises(InputError, match=r"no measured link eu->us over any transport"):
        candidates_of(profile, ["us", "eu"], everything)


def test_links_of_other_transports_and_regions_are_left_out() -> None:
    both = [measured(TrueLink(), src=src, dst=dst) for src, dst in (("us", "eu"), ("eu", "us"))]
    moon = measured(TrueLink(), src="us", dst="moon")
    other = measured(TrueLink(), carrier=OBJECTS)
    links = candidates_of(profile_of(*both, moon, other), ["us", "eu"], only_collective)
    assert [[(link.src, link.dst) for link in each] for each in links] == [
        [("us", "eu")],
        [("eu", "us")],
    ]


def test_pairs_of_ranks_stand_for_their_regions() -> None:
    regions = ("us", "eu", "eu")
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0)]
    links = [measured(TrueLink(), src=src, dst=dst) for src, dst in pairs]
    profile = profile_of(*links, regions=regions)
    assert len(candidates_of(profile, regions, only_collective)) == 4
    with pytest.raises(InputError, match="no measured link us->eu"):
        candidates_of(profile_of(*links[1:], regions=regions), regions, only_collective)
    with pytest.raises(
        InputError, match="between ranks in us, eu, eu, the run's are in eu, eu, us"
    ):
        candidates_of(profile, ["eu", "eu", "us"], only_collective)


def test_pairs_without_a_named_carrier_have_the_wished_one() -> None:
    link = Link(src="us", dst="eu", transport="object_store")
    carriers = carriers_of(
        three_stages(link), lambda src, dst: Wish("streams" if "eu2" in (src, dst) else "auto")
    )
    assert carriers[0, 1] == OBJECTS
    assert carriers[1, 0] == COLLECTIVE
    assert carriers[1, 2] == Carrier("streams", 8)
    assert set(carriers_of(three_stages()).values()) == {COLLECTIVE}


def test_a_plan_keeps_what_its_links_name(tmp_path: Path) -> None:
    problem = with_measured_links(three_stages(), mixed_profile(), everything)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_json(plan(problem, method="1f1b"))))
    assert named_carriers(read_plan(file).problem) == named_carriers(problem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transport": "pigeons"}, "links.0.transport: input should be 'collective'"),
        ({"streams": 4}, "links.0: streams 4: only with transport 'streams'"),
        ({"transport": "streams", "streams": 0}, "links.0.streams: input should be greater than"),
        ({"transport": "streams", "streams": 65}, "links.0.streams: input should be less than or"),
        ({"stream": 4}, "links.0.stream: unknown field; did you mean 'streams'"),
    ],
)
def test_a_plan_with_a_wrong_carrier_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    made = plan_json(plan(three_stages(Link(src=0, dst=1)), method="1f1b"))
    content = json.loads(json.dumps(made))
    content["problem"]["links"][0] |= changes
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(content))
    with pytest.raises(PlanError) as caught:
        read_plan(file)
    assert f"problem.{message}" in str(caught.value)
    assert "\n" not in str(caught.value)
