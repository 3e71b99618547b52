"""The emulated WAN is what it says: delays, rates, losses, jitter, asymmetry, change, partition."""

import select
import socket
import time
from contextlib import ExitStack

import pytest

from crosspipe_ray.errors import InputError
from crosspipe_ray.testing.wan import Link, LinkReport, Region, Wan, WanSpec
from tests.wan.probes import (
    TIMEOUT_S,
    Datagrams,
    arrives_intact,
    connection,
    goodput_mbit_s,
    median_of,
    settles,
)

pytestmark = pytest.mark.wan

BUFFERS = "4096 131072 67108864"
LARGE_BUFFERS = WanSpec(
    regions=(Region(name="us"), Region(name="eu")),
    links=(Link(src="us", dst="eu", latency_ms=5),),
    sysctls={"net.ipv4.tcp_rmem": BUFFERS, "net.ipv4.tcp_wmem": BUFFERS},
)


def assert_round_trip(datagrams: Datagrams, expected_ms: float) -> None:
    is_right, measured = settles(
        lambda: median_of(datagrams.round_trip_ms),
        expected=expected_ms,
        tolerance=max(1.0, 0.02 * expected_ms),
    )
    assert is_right, f"round trips of {measured} ms instead of {expected_ms}"


def test_round_trips_are_those_asked_for_while_the_latency_changes(wan: Wan) -> None:
    with ExitStack() as stack:
        datagrams = Datagrams(wan, stack)
        for latency_ms in (0, 10, 25, 50):
            wan.set("us", "eu", latency_ms=latency_ms)
            assert_round_trip(datagrams, 2 * latency_ms)


@pytest.mark.wan(LARGE_BUFFERS)
@pytest.mark.parametrize(("rate", "num_megabytes"), [(10, 2), (100, 20), (1000, 150)])
def test_a_stream_gets_the_rate_of_the_link(wan: Wan, rate: int, num_megabytes: int) -> None:
    wan.set("us", "eu", bandwidth_mbit_s=rate)
    is_right, measured = settles(
        lambda: goodput_mbit_s(wan, num_megabytes * 1_000_000),
        expected=rate,
        tolerance=0.05 * rate,
    )
    assert is_right, f"{measured} Mbit/s instead of {rate}"


@pytest.mark.wan(latency_ms=5)
def test_directions_are_shaped_apart(wan: Wan) -> None:
    wan.set("us", "eu", latency_ms=30, one_way=True)
    with ExitStack() as stack:
        there, back = Datagrams(wan, stack), Datagrams(wan, stack, "eu", "us")
        for datagrams, expected_ms in ((there, 30), (back, 5)):
            is_right, measured = settles(
                lambda: median_of(datagrams.one_way_ms),  # noqa: B023 - called at once
                expected=expected_ms,
                tolerance=1.0,
            )
            assert is_right, f"{measured} ms instead of {expected_ms}"


@pytest.mark.wan(loss=0.1)
def test_datagrams_are_lost_as_often_as_asked(wan: Wan) -> None:
    num_sent = 3000
    with ExitStack() as stack:
        datagrams = Datagrams(wan, stack)
        for _ in range(num_sent):
            datagrams.there.send(b"x")
        [link] = [each for each in wait_for_segments(wan, num_sent) if each.src == "us"]
        wan.set("us", "eu", loss=0)
        datagrams.there.send(b"end")
        num_received = 0
        while datagrams.back.recv(16) != b"end":
            num_received += 1
    assert num_received == num_sent - link.num_lost
    assert abs(link.num_lost - 300) < 5 * (num_sent * 0.1 * 0.9) ** 0.5


@pytest.mark.wan(loss=0.01, latency_ms=1)
def test_losses_are_drawn_per_segment_and_tcp_mends_them(wan: Wan) -> None:
    assert arrives_intact(wan, bytes(range(256)) * 32768)
    link = wan.report()[0]
    assert link.num_segments > 8_000_000 / 1500
    deviation = (link.num_segments * 0.01 * 0.99) ** 0.5
    assert abs(link.num_lost - 0.01 * link.num_segments) < 5 * deviation


@pytest.mark.wan(latency_ms=5, jitter_ms=20)
def test_jitter_varies_the_delay_and_keeps_the_order(wan: Wan) -> None:
    with ExitStack() as stack:
        datagrams = Datagrams(wan, stack)
        delays_ms = sorted(datagrams.one_way_ms() for _ in range(40))
        assert delays_ms[0] >= 5
        assert delays_ms[-4] - delays_ms[4] > 5
        numbers = [index.to_bytes(4, "big") for index in range(500)]
        for number in numbers:
            datagrams.there.send(number)
        assert [datagrams.back.recv(16) for _ in numbers] == numbers


@pytest.mark.wan(latency_ms=2)
def test_a_partition_lets_nothing_through_and_healing_lets_tcp_go_on(wan: Wan) -> None:
    with ExitStack() as stack:
        client, server = connection(wan, stack)
        client.send(b"before")
        assert server.recv(16) == b"before"
        wan.partition("us", "eu")
        assert all(link.is_cut for link in wan.report())
        client.send(b"during")
        wait_for_cut(wan)
        assert select.select([server], [], [], 0)[0] == []
        wan.heal("us", "eu")
        assert server.recv(16) == b"during"


@pytest.mark.wan(regions=("us", "eu", "ap"), latency_ms=3)
def test_a_partition_leaves_other_links_alone(wan: Wan) -> None:
    wan.partition("us", "eu")
    with ExitStack() as stack:
        assert Datagrams(wan, stack, "us", "ap").round_trip_ms() >= 6
        assert Datagrams(wan, stack, "ap", "eu").round_trip_ms() >= 6


@pytest.mark.wan(
    WanSpec(
        regions=(Region(name="us", num_hosts=2), Region(name="eu")),
        links=(Link(src="us", dst="eu", latency_ms=20),),
    )
)
def test_hosts_of_one_region_are_close(wan: Wan) -> None:
    with ExitStack() as stack:
        assert_round_trip(Datagrams(wan, stack, "us-0", "us-1"), 0)
        assert_round_trip(Datagrams(wan, stack, "us-1", "eu"), 40)


@pytest.mark.wan(congestion_control="reno")
def test_congestion_control_is_chosen_by_route(wan: Wan) -> None:
    with ExitStack() as stack:
        client, server = connection(wan, stack)
        for end in (client, server):
            name = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert name.rstrip(b"\0") == b"reno"


def test_what_is_not_there_is_refused(wan: Wan) -> None:
    with pytest.raises(InputError, match=r"no link 'us-moon'.*'eu-us', 'us-eu'"):
        wan.partition("us", "moon")
    with pytest.raises(InputError, match="us-eu: latency_ms: input should be greater"):
        wan.set("us", "eu", latency_ms=-1)
    with pytest.raises(InputError, match="us-eu: latency: unknown field; did you mean"):
        wan.set("us", "eu", latency=1)
    with pytest.raises(InputError, match="no region or host 'moon'"):
        wan.address("moon")


def wait_for_segments(wan: Wan, num_segments: int) -> list[LinkReport]:
    """Links, when the first of them has seen so many segments."""
    deadline = time.monotonic() + TIMEOUT_S
    while (links := wan.report())[0].num_segments < num_segments:
        assert time.monotonic() < deadline, links
    return links


def wait_for_cut(wan: Wan) -> None:
    """Until a partition has swallowed something."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(link.num_cut for link in wan.report()):
        assert time.monotonic() < deadline
