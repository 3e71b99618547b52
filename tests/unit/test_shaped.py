import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import (
    Handle,
    LinkShape,
    LoopbackHub,
    ShapedTransport,
    TransportTimeout,
    Window,
)
from crosspipe_ray.engine.transports.shaped import ChannelClock, Link
from crosspipe_ray.errors import AbortedError

MS = 1_000_000
WAN = LinkShape(channel="wan", latency_ns=30 * MS, occupancy_ns=lambda n: 1000 * n)


def link(shape: LinkShape, channel: ChannelClock | None = None, seed: int = 0) -> Link:
    return Link(shape, channel or ChannelClock(), random.Random(seed))


def shaped_pair(shape: LinkShape, num_ranks: int = 2, **options: Any) -> list[ShapedTransport]:
    """Transports with this shape on all links to rank 0."""
    hub = LoopbackHub(num_ranks)
    links = {(src, 0): shape for src in range(1, num_ranks)}
    ranks = range(num_ranks)
    return [ShapedTransport(hub.transport(rank), links=links, **options) for rank in ranks]


def send_windows(sender: ShapedTransport, num_messages: int, num_bytes: int) -> list[Window]:
    message = torch.zeros(num_bytes, dtype=torch.uint8)
    windows = [sender.isend(message, peer=0, tag=i).window for i in range(num_messages)]
    return [window for window in windows if window is not None]


def done_ns(handle: Handle) -> int:
    assert handle.done_ns is not None
    return handle.done_ns


def arrive_ns(handle: Handle) -> int:
    assert handle.window is not None
    return handle.window.arrive_ns


def test_a_message_occupies_the_channel_and_arrives_a_latency_later() -> None:
    assert link(WAN).reserve(2000, now_ns=100 * MS) == (100 * MS, 102 * MS, 132 * MS)


def test_messages_queue_behind_each_other_but_not_behind_an_idle_channel() -> None:
    wan = link(WAN)
    assert wan.reserve(2000, now_ns=100 * MS) == (100 * MS, 102 * MS, 132 * MS)
    assert wan.reserve(5000, now_ns=101 * MS) == (102 * MS, 107 * MS, 137 * MS)
    assert wan.reserve(1000, now_ns=200 * MS) == (200 * MS, 201 * MS, 231 * MS)


def test_without_a_bandwidth_messages_take_only_their_overhead() -> None:
    assert link(LinkShape(channel="wan", latency_ns=7)).reserve(10**9, now_ns=5) == (5, 5, 12)
    overhead = link(LinkShape(channel="wan", occupancy_ns=lambda _: 3))
    assert overhead.reserve(10**9, now_ns=5) == (5, 8, 8)
    assert overhead.reserve(0, now_ns=5) == (8, 11, 11)


def test_links_on_one_channel_queue_behind_each_other(tmp_path: Path) -> None:
    first, second = (link(WAN, ChannelClock(tmp_path / "wan")) for _ in range(2))
    assert first.reserve(2000, now_ns=100 * MS) == (100 * MS, 102 * MS, 132 * MS)
    assert second.reserve(1000, now_ns=100 * MS) == (102 * MS, 103 * MS, 133 * MS)


def test_jitter_comes_from_the_seed_and_keeps_the_order() -> None:
    shape = LinkShape(channel="wan", latency_ns=MS, jitter_ns=10 * MS)

    def arrivals(seed: int) -> list[int]:
        jittery = link(shape, seed=seed)
        return [jittery.reserve(0, now_ns=now).arrive_ns for now in range(50)]

    assert arrivals(1) == arrivals(1) != arrivals(2)
    assert arrivals(1) == sorted(arrivals(1))
    assert all(MS <= arrive < 11 * MS + 50 for arrive in arrivals(1))


def test_jitter_differs_between_links_and_repeats_with_the_seed() -> None:
    shape = LinkShape(channel="per link", jitter_ns=10 * MS)

    def jitters(rank: int, seed: int) -> int:
        (window,) = send_windows(shaped_pair(shape, 3, seed=seed)[rank], 1, 8)
        return window.arrive_ns - window.end_ns

    assert jitters(1, seed=5) == jitters(1, seed=5)
    assert len({jitters(rank, seed) for rank in (1, 2) for seed in (5, 6)}) == 4


def test_senders_of_a_shared_channel_wait_for_each_other(tmp_path: Path) -> None:
    slow = LinkShape(channel="wan", occupancy_ns=lambda n: n * 10**9)
    _, first, second = shaped_pair(slow, 3, clock_dir=tmp_path)
    windows = send_windows(first, 2, 100) + send_windows(second, 2, 100)
    for before, after in pairwise(windows):
        assert after.start_ns == before.end_ns == before.start_ns + 100_000 * MS


def test_both_ends_know_the_window_and_nothing_arrives_before_it() -> None:
    receiver, sender = shaped_pair(LinkShape(channel="wan", latency_ns=3 * MS))
    handle = receiver.irecv(torch.zeros(4), peer=1, tag=0)
    assert handle.window is None
    sent = sender.isend(torch.ones(4), peer=0, tag=0)
    assert handle.window == sent.window
    handle.wait(timeout_s=10.0)
    assert clock.now_ns() >= done_ns(handle) >= arrive_ns(sent)


def test_a_real_transfer_slower_than_the_link_decides() -> None:
    receiver, sender = shaped_pair(LinkShape(channel="wan"))
    sent = sender.isend(torch.ones(4), peer=0, tag=0)
    assert clock.sleep_until(arrive_ns(sent) + MS)
    handle = receiver.irecv(torch.zeros(4), peer=1, tag=0)
    assert done_ns(handle) >= arrive_ns(sent) + MS


def test_a_message_that_is_still_on_the_link_times_out_and_can_be_aborted() -> None:
    receiver, sender = shaped_pair(LinkShape(channel="wan", latency_ns=3600 * 1000 * MS))
    handle = receiver.irecv(torch.zeros(4), peer=1, tag=9)
    sender.isend(torch.ones(4), peer=0, tag=9).wait(timeout_s=10.0)
    assert handle.done_ns is None
    with pytest.raises(TransportTimeout, match="tag 9 from rank 1"):
        handle.wait(timeout_s=0.01)
    receiver.abort("enough")
    with pytest.raises(AbortedError, match="enough"):
        handle.wait(timeout_s=10.0)


def test_pairs_without_a_link_pass_straight_through() -> None:
    transport, other = shaped_pair(WAN)
    sent = transport.isend(torch.ones(4), peer=1, tag=0)
    into = torch.zeros(4)
    received = other.irecv(into, peer=0, tag=0)
    received.wait(timeout_s=10.0)
    assert sent.window is received.window is None
    assert into.tolist() == [1.0] * 4


def test_close_removes_the_clocks_of_shared_channels(tmp_path: Path) -> None:
    transports = shaped_pair(LinkShape(channel="us/east -> eu"), 4, clock_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for transport in transports:
        transport.close()
        transport.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"latency_ns": -1}, {"jitter_ns": -1}])
def test_impossible_links_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0] + "|times"):
        LinkShape(channel="wan", **wrong)
