from typing import Any

import pytest

from crosspipe_ray.problem import Problem
from crosspipe_ray.topology import Topology, topology_of
from tests.unit.builders import problem_data


def resolve(*links: dict[str, Any]) -> Topology:
    """Links between ranks 0 and 1 in us, 2 and 3 in eu."""
    data = problem_data((0, 1, 2, 3), 1, links=list(links))
    for rank, cluster in zip(data["ranks"], ("us", "us", "eu", "eu"), strict=True):
        rank["cluster"] = cluster
    return topology_of(Problem.model_validate(data))


def channel(topology: Topology, src: int, dst: int) -> str:
    return topology.channels[topology.routes[src, dst].channel]


def test_pairs_without_a_link_have_no_route() -> None:
    assert set(resolve({"src": 1, "dst": 2}).routes) == {(1, 2)}


def test_cluster_link_is_one_channel_for_all_pairs() -> None:
    topology = resolve({"src": "us", "dst": "eu"})
    assert set(topology.routes) == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert topology.channels == ("us->eu",)


def test_directions_do_not_share() -> None:
    topology = resolve({"src": "us", "dst": "eu"}, {"src": "eu", "dst": "us"})
    assert channel(topology, 1, 2) != channel(topology, 2, 1)


def test_per_pair_gives_every_pair_its_channel() -> None:
    topology = resolve({"src": "us", "dst": "eu", "channel": "per_pair"})
    assert topology.channels == ("0->2", "0->3", "1->2", "1->3")


def test_named_channel_is_shared_between_links() -> None:
    topology = resolve(
        {"src": 0, "dst": 1, "channel": "x"}, {"src": "eu", "dst": "us", "channel": "x"}
    )
    assert topology.channels == ("x",)


def test_cluster_may_have_a_link_to_itself() -> None:
    assert set(resolve({"src": "us", "dst": "us"}).routes) == {(0, 1), (1, 0)}


@pytest.mark.parametrize("turn", [1, -1])
def test_link_between_ranks_goes_before_their_clusters(turn: int) -> None:
    links: list[dict[str, Any]] = [
        {"src": "us", "dst": "eu", "latency_us": 5},
        {"src": 1, "dst": 2, "latency_us": 1},
    ]
    routes = resolve(*links[::turn]).routes
    assert routes[1, 2].latency_ns == 1000
    assert routes[0, 2].latency_ns == 5000


def occupancy_ns(num_bytes: int, **fields: Any) -> int:
    return resolve({"src": 0, "dst": 1, **fields}).routes[0, 1].occupancy_ns(num_bytes)


def test_occupancy_is_size_over_bandwidth() -> None:
    assert occupancy_ns(1000, bandwidth_bytes_per_s=500_000_000) == 2000


def test_no_bandwidth_means_no_occupancy() -> None:
    assert occupancy_ns(10**9) == 0


def test_overhead_is_added_to_every_message() -> None:
    fields = {"message_overhead_us": 3, "bandwidth_bytes_per_s": 500_000_000}
    assert [occupancy_ns(size, **fields) for size in (0, 1000)] == [3000, 5000]


@pytest.mark.parametrize(
    ("num_bytes", "rate"), [(10, 1e6), (1000, 1e6), (2000, 2e6), (3000, 3e6), (9000, 3e6)]
)
def test_bandwidth_curve_is_interpolated_and_flat_outside(num_bytes: int, rate: float) -> None:
    curve = [[1000, 1e6], [3000, 3e6]]
    assert occupancy_ns(num_bytes, bandwidth_curve=curve) == round(num_bytes * 1e9 / rate)
