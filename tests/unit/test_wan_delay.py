"""Queues and losses of an emulated link, on a clock that the tests turn."""

from random import Random

import pytest

from crosspipe_ray.testing.wan.delay import DelayQueue, Losses, Shape

MS = 1_000_000
NEVER = 1 << 62


def queue(shape: Shape) -> DelayQueue[str]:
    return DelayQueue(shape, Random(0))


def test_a_packet_arrives_after_transmission_and_latency() -> None:
    link = queue(Shape(latency_ns=20 * MS, bytes_per_s=1_000_000))
    assert link.next_arrival_ns >= NEVER
    assert link.push("a", num_bytes=1000, now_ns=5 * MS)
    assert link.next_arrival_ns == 26 * MS
    assert list(link.arrived(26 * MS - 1)) == []
    assert list(link.arrived(26 * MS)) == ["a"]
    assert link.next_arrival_ns >= NEVER


def test_packets_are_transmitted_one_after_the_other() -> None:
    link = queue(Shape(latency_ns=20 * MS, bytes_per_s=1_000_000))
    for name in "abc":
        link.push(name, num_bytes=1000, now_ns=0)
    assert list(link.arrived(22 * MS)) == ["a", "b"]
    assert link.next_arrival_ns == 23 * MS


def test_an_idle_link_saves_no_time_up() -> None:
    link = queue(Shape(bytes_per_s=1_000_000))
    link.push("a", num_bytes=1000, now_ns=0)
    link.push("b", num_bytes=1000, now_ns=50 * MS)
    assert list(link.arrived(1 * MS)) == ["a"]
    assert link.next_arrival_ns == 51 * MS


def test_a_packet_that_would_wait_too_long_is_dropped() -> None:
    link = queue(Shape(bytes_per_s=1_000_000, queue_ns=2 * MS))
    taken = [link.push(str(index), num_bytes=1000, now_ns=0) for index in range(5)]
    assert taken == [True, True, True, False, False]
    assert link.push("later", num_bytes=1000, now_ns=1 * MS)


def test_jitter_delays_within_its_bound_and_keeps_the_order() -> None:
    link = queue(Shape(latency_ns=MS, jitter_ns=10 * MS))
    arrivals = []
    for now_ms in range(0, 200, 2):
        link.push("a", num_bytes=1, now_ns=now_ms * MS)
        arrivals.append((now_ms, link._last_arrive_ns / MS))
    assert arrivals == sorted(arrivals, key=lambda each: each[1])
    assert all(sent + 1 <= arrived <= sent + 11 for sent, arrived in arrivals)
    assert len({arrived - sent for sent, arrived in arrivals}) > 50


def test_a_change_overtakes_nothing() -> None:
    link = queue(Shape(latency_ns=100 * MS))
    link.push("slow", num_bytes=1, now_ns=0)
    link.shape = Shape(latency_ns=1 * MS)
    link.push("fast", num_bytes=1, now_ns=0)
    assert list(link.arrived(99 * MS)) == []
    assert list(link.arrived(100 * MS)) == ["slow", "fast"]


def test_clearing_loses_everything_and_frees_the_line() -> None:
    link = queue(Shape(latency_ns=MS, bytes_per_s=1000))
    link.push("a", num_bytes=1000, now_ns=0)
    assert link.clear() == 1
    link.push("b", num_bytes=1, now_ns=0)
    assert list(link.arrived(2 * MS)) == ["b"]


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5])
def test_losses_are_as_frequent_as_asked(probability: float) -> None:
    losses, num_segments = Losses(probability, Random(7)), 200_000
    num_lost = sum(len(losses.among(40)) for _ in range(num_segments // 40))
    deviation = (num_segments * probability * (1 - probability)) ** 0.5
    assert abs(num_lost - num_segments * probability) < 5 * deviation


def test_losses_do_not_depend_on_how_segments_are_grouped() -> None:
    grouped, single = Losses(0.1, Random(3)), Losses(0.1, Random(3))
    in_groups = [start + index for start in range(0, 600, 30) for index in grouped.among(30)]
    assert in_groups == [index for index in range(600) if single.among(1)]


def test_nothing_and_everything_can_be_lost() -> None:
    assert Losses(0.0, Random(0)).among(10**6) == []
    assert Losses(1.0, Random(0)).among(4) == [0, 1, 2, 3]
