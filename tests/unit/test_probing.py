"""A lane is measured as it was shaped."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from crosspipe_ray.carriers import Carrier
from crosspipe_ray.engine.probing import LaneEnd, ProbeSettings, answer, ask, measure_lane, release
from crosspipe_ray.engine.transports import (
    LinkShape,
    LoopbackHub,
    ShapedTransport,
    TransportTimeout,
)
from crosspipe_ray.errors import RunError
from crosspipe_ray.links.estimate import measured_link
from crosspipe_ray.links.profile import MeasuredLink

MS = 1_000_000
KIB = 1024
QUICK = ProbeSettings(sizes=(1, 64 * KIB, 1024 * KIB), num_pings=20, num_repeats=5, timeout_s=30)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Copies of loopback are shared out among threads otherwise, which wait for a busy core."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@contextmanager
def lane(shape: LinkShape, back: LinkShape | None = None) -> Iterator[tuple[LaneEnd, LaneEnd]]:
    """Sender 0 and receiver 1 over loopback, shaped in both directions."""
    hub = LoopbackHub(2)
    links = {(0, 1): shape, (1, 0): back or LinkShape(channel="back", latency_ns=shape.latency_ns)}
    transports = [ShapedTransport(hub.transport(rank), links=links) for rank in range(2)]
    sender, receiver = (
        LaneEnd(transport=each, peer=1 - each.rank, device=torch.device("cpu"), timeout_s=30)
        for each in transports
    )
    try:
        yield sender, receiver
    finally:
        for each in transports:
            each.close()


def probe(shape: LinkShape, back: LinkShape | None = None) -> MeasuredLink:
    with lane(shape, back) as (sender, receiver), ThreadPoolExecutor() as pool:
        answered = pool.submit(answer, sender)
        exchanges = measure_lane(receiver, QUICK)
        answered.result(30)
    return measured_link(exchanges, src="us", dst="eu", carrier=Carrier(), has_common_clock=True)


def wan(
    latency_ms: float, overhead_us: float, bytes_per_us: float, jitter_ms: float = 0
) -> LinkShape:
    return LinkShape(
        channel="wan",
        latency_ns=round(latency_ms * MS),
        occupancy_ns=lambda num_bytes: round(1000 * (overhead_us + num_bytes / bytes_per_us)),
        jitter_ns=round(jitter_ms * MS),
    )


@pytest.mark.parametrize(
    ("latency_ms", "overhead_us", "bytes_per_us"), [(5, 400, 125), (1, 2000, 1000), (20, 500, 625)]
)
def test_a_shaped_lane_is_found_again(
    latency_ms: float, overhead_us: float, bytes_per_us: float
) -> None:
    found = probe(wan(latency_ms, overhead_us, bytes_per_us))
    assert found.latency_us.value == pytest.approx(latency_ms * 1000, rel=0.05)
    assert found.message_overhead_us.value == pytest.approx(overhead_us, rel=0.05)
    assert found.bandwidth_bytes_per_s.value == pytest.approx(bytes_per_us * 1e6, rel=0.05)
    assert found.residual < 0.03


def test_a_lane_is_not_confused_by_the_way_back() -> None:
    back = LinkShape(channel="back", latency_ns=25 * MS)
    found = probe(wan(5, 400, 125), back)
    assert found.latency_us.value == pytest.approx(5_000, rel=0.05)


def test_jitter_is_seen_as_jitter() -> None:
    found = probe(wan(5, 400, 125, jitter_ms=4))
    assert 1_000 < found.jitter_us.p50 < 3_000
    assert 3_000 < found.jitter_us.p99 < 4_500
    assert 6_000 < found.latency_us.value < 8_000


def test_every_size_is_a_point_and_a_slow_one_ends_the_probe() -> None:
    assert [point.num_bytes for point in probe(wan(1, 400, 1000)).points] == list(QUICK.sizes)
    hasty = ProbeSettings(sizes=QUICK.sizes, num_pings=5, budget_s=0.2, timeout_s=30)
    with lane(wan(1, 400, 10)) as (sender, receiver), ThreadPoolExecutor() as pool:
        answered = pool.submit(answer, sender)
        sizes = {each.num_bytes for each in measure_lane(receiver, hasty)}
        answered.result(30)
    assert sizes == {1, 64 * KIB}


def test_the_receiver_may_ask_as_often_as_it_likes() -> None:
    with lane(wan(1, 100, 1000)) as (sender, receiver), ThreadPoolExecutor() as pool:
        answered = pool.submit(answer, sender)
        exchanges = [ask(receiver, num_bytes=10, num_messages=count) for count in (1, 3)]
        release(receiver)
        answered.result(30)
    assert [len(each.arrived_ns) for each in exchanges] == [1, 3]
    for each in exchanges:
        assert each.asked_ns < each.heard_ns <= each.sent_ns < each.arrived_ns[0]
        assert list(each.arrived_ns) == sorted(each.arrived_ns)


def test_a_sender_that_is_gone_ends_the_probe() -> None:
    with lane(wan(1, 100, 1000)) as (sender, receiver):
        sender.transport.close()
        with pytest.raises(RunError, match="rank 0 is gone"):
            ask(receiver, num_bytes=1)


def test_a_silent_receiver_ends_the_answers() -> None:
    with lane(wan(1, 100, 1000)) as (sender, _):
        impatient = LaneEnd(
            transport=sender.transport, peer=1, device=sender.device, timeout_s=0.05
        )
        with pytest.raises(TransportTimeout, match="nothing after"):
            answer(impatient)
