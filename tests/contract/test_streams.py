"""What the streams transport promises beyond the contract of all transports."""

from __future__ import annotations

import logging
import multiprocessing
import random
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import EventHandle, Transport, host_store, join_store
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.engine.transports.streams import (
    Credentials,
    Door,
    StreamsTransport,
    exchange_addresses,
    sending,
    wire,
)
from crosspipe_ray.engine.transports.streams.connection import Connection, Route
from crosspipe_ray.engine.transports.streams.receiving import ReceivingLane, ReceivingStream
from crosspipe_ray.engine.transports.streams.wire import Chunk, Hello, WireError
from crosspipe_ray.errors import ConfigError, RunError
from tests.contract.credentials import make_credentials
from tests.contract.tcp_proxy import CuttingProxy
from tests.contract.transport_contract import MIB, TIMEOUT_S, number, receive, send

Pair = tuple[StreamsTransport, StreamsTransport]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("streams") / "run")


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Those of another authority."""
    return make_credentials(tmp_path_factory.mktemp("streams") / "strange")


@contextmanager
def pair(
    credentials: Credentials,
    *,
    num_streams: int = 1,
    proxy: CuttingProxy | None = None,
    door: Door | None = None,
    resume_s: float = 10.0,
) -> Iterator[Pair]:
    """Two ranks in this process; rank 0 reaches rank 1 through the proxy."""
    doors = [Door("127.0.0.1"), door or Door("127.0.0.1")]
    addresses = [one.address for one in doors]

    def connect(rank: int) -> StreamsTransport:
        seen = [addresses[0], proxy.address] if proxy is not None and rank == 0 else addresses
        return StreamsTransport(
            doors[rank],
            rank=rank,
            addresses=seen,
            credentials=credentials,
            num_streams={(0, 1): num_streams},
            timeout_s=TIMEOUT_S,
            resume_s=resume_s,
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(connect, range(2), timeout=TIMEOUT_S)
    try:
        yield first, second
    finally:
        first.close()
        second.close()


@contextmanager
def proxied(
    credentials: Credentials, cut_after_bytes: Iterable[int] = (), **options: int
) -> Iterator[tuple[CuttingProxy, Pair]]:
    door = Door("127.0.0.1")
    proxy = CuttingProxy(door.address, cut_after_bytes)
    try:
        with pair(credentials, proxy=proxy, door=door, **options) as transports:
            yield proxy, transports
    finally:
        proxy.close()


def exchange(transports: Pair, message: torch.Tensor) -> torch.Tensor:
    sender, receiver = transports
    into = torch.zeros_like(message)
    arrival = receiver.irecv(into, peer=0, tag=5)
    sender.isend(message, peer=1, tag=5).wait(timeout_s=TIMEOUT_S)
    arrival.wait(timeout_s=TIMEOUT_S)
    return into


def noise(num_bytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("num_streams", [1, 4])
def test_a_connection_that_dies_within_a_tensor_goes_on_where_it_was(
    credentials: Credentials, num_streams: int, caplog: pytest.LogCaptureFixture
) -> None:
    message = noise(32 * MIB)
    with proxied(credentials, [5 * MIB + 17], num_streams=num_streams) as (proxy, transports):
        assert torch.equal(exchange(transports, message), message)
        assert proxy.num_cuts == 1
        # What was on its way is sent again: a few chunks, not the tensor.
        assert proxy.num_bytes < 32 * MIB + 10 * MIB
    assert "reopened, goes on at chunk" in caplog.text


def test_messages_survive_many_cuts_in_order(credentials: Credentials) -> None:
    rng = random.Random(3)
    cuts = [rng.randrange(20_000, 3 * MIB) for _ in range(25)]
    messages = [noise(rng.randrange(2 * MIB), seed) for seed in range(40)]
    with proxied(credentials, cuts, num_streams=3) as (proxy, (sender, receiver)):
        intos = [torch.zeros_like(message) for message in messages]
        handles = [receiver.irecv(into, peer=0, tag=i) for i, into in enumerate(intos)]
        handles += [sender.isend(one, peer=1, tag=i) for i, one in enumerate(messages)]
        for handle in handles:
            handle.wait(timeout_s=TIMEOUT_S)
        assert proxy.num_cuts >= 5
    assert all(map(torch.equal, messages, intos))


def test_receives_posted_after_the_connection_died_get_their_messages(
    credentials: Credentials,
) -> None:
    message = noise(8 * MIB)
    with proxied(credentials, num_streams=2) as (proxy, (sender, receiver)):
        sent = sender.isend(message, peer=1, tag=0)
        proxy.cut_all()
        into = torch.zeros_like(message)
        receiver.irecv(into, peer=0, tag=0).wait(timeout_s=TIMEOUT_S)
        sent.wait(timeout_s=TIMEOUT_S)
    assert torch.equal(into, message)


def test_a_stream_changes_its_key_before_it_is_worn_out(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "_MAX_BYTES_PER_KEY", 3 * MIB)
    message = noise(10 * MIB)
    with pair(credentials) as transports:
        assert torch.equal(exchange(transports, message), message)
    assert not caplog.text


def test_credentials_that_are_no_good_are_an_error(credentials: Credentials) -> None:
    missing = replace(credentials, authority=Path("nowhere.pem"))
    door = Door("127.0.0.1")
    with pytest.raises(ConfigError, match=r"no usable certificates .*nowhere\.pem"):
        StreamsTransport(
            door,
            rank=0,
            addresses=[door.address, door.address],
            credentials=missing,
            num_streams={},
            timeout_s=TIMEOUT_S,
        )
    door.close()
    with pytest.raises(ValueError, match="3 bytes: at least 16"):
        replace(credentials, token=b"abc")


def test_a_rank_that_does_not_come_back_is_gone(credentials: Credentials) -> None:
    with proxied(credentials, resume_s=1) as (proxy, (sender, receiver)):
        arrival = receiver.irecv(number(0), peer=0, tag=1)
        proxy.close()
        with pytest.raises(RunError, match="tag 2 to rank 1: rank 1 is gone"):
            sender.isend(number(1), peer=1, tag=2).wait(timeout_s=TIMEOUT_S)
        with pytest.raises(RunError, match="tag 1 from rank 0: rank 0 is gone: no connection"):
            arrival.wait(timeout_s=TIMEOUT_S)


def wait_for_ever(store_port: int, folder: Path) -> None:
    """Rank 1, in a process that will be killed."""
    store = join_store("127.0.0.1", store_port, timeout_s=TIMEOUT_S)
    transport = over_store(store, 1, make_credentials(folder))
    send(transport, 0, peer=0)
    transport.irecv(number(0), peer=0, tag=1).wait(timeout_s=TIMEOUT_S)


def over_store(store: TCPStore, rank: int, credentials: Credentials) -> StreamsTransport:
    door = Door("127.0.0.1")
    return StreamsTransport(
        door,
        rank=rank,
        addresses=exchange_addresses(store, door, rank=rank, num_ranks=2),
        credentials=credentials,
        num_streams={(1, 0): 2},
        timeout_s=TIMEOUT_S,
    )


def test_a_killed_rank_is_noticed_at_once(credentials: Credentials) -> None:
    store = host_store("127.0.0.1", timeout_s=TIMEOUT_S)
    process = multiprocessing.get_context("spawn").Process(
        target=wait_for_ever, args=(store.port, credentials.key.parent), daemon=True
    )
    process.start()
    transport = over_store(store, 0, credentials)
    receive(transport, peer=1)
    arrival = transport.irecv(number(0), peer=1, tag=1)
    process.kill()
    started_ns = clock.now_ns()
    with pytest.raises(RunError, match="tag 1 from rank 1: rank 1 is gone"):
        arrival.wait(timeout_s=TIMEOUT_S)
    assert clock.now_ns() - started_ns < 3e9  # not the ten seconds that a lost link may take
    process.join(TIMEOUT_S)
    with pytest.raises(RunError, match="tag 2 to rank 1: rank 1 is gone"):
        transport.isend(number(0), peer=1, tag=2).wait(timeout_s=TIMEOUT_S)
    transport.close()


def test_a_message_of_another_size_is_an_error(credentials: Credentials) -> None:
    with pair(credentials, resume_s=1) as (sender, receiver):
        arrival = receiver.irecv(torch.zeros(3), peer=0, tag=1)
        sender.isend(torch.zeros(4), peer=1, tag=1)
        with pytest.raises(RunError, match="12 bytes, met a send of tag 1, 16 bytes"):
            arrival.wait(timeout_s=TIMEOUT_S)


def test_nothing_is_readable_on_the_way(credentials: Credentials) -> None:
    secret = b"weights that are worth a lot"
    message = torch.frombuffer(bytearray(secret * 1000), dtype=torch.uint8)
    with proxied(credentials) as (proxy, transports):
        exchange(transports, message)
        assert proxy.num_bytes > len(secret) * 1000
        assert secret[:16] not in proxy.recorded
        assert credentials.token[:16] not in proxy.recorded


HELLO = Hello(0, 1, 0, 1, b"n" * wire.NONCE_BYTES)


def intrude(door: Door, credentials: Credentials, *, checks_server: bool = True) -> Connection:
    """Comes to a door as the first stream of rank 0."""
    context = credentials.client_context()
    if not checks_server:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(door.address, timeout=TIMEOUT_S)
    tls = context.wrap_socket(
        plain, server_hostname=credentials.name, do_handshake_on_connect=False
    )
    connection = Connection(tls, timeout_s=TIMEOUT_S)
    try:
        connection.introduce(HELLO, credentials.token)
    except BaseException:
        connection.close()
        raise
    return connection


def with_wrong_token(door: Door, own: Credentials, _: Credentials) -> None:
    intrude(door, replace(own, token=b"a token that is not the run's"))


def with_wrong_certificate(door: Door, own: Credentials, strange: Credentials) -> None:
    intrude(door, replace(strange, token=own.token), checks_server=False)


def without_certificate(door: Door, own: Credentials, _: Credentials) -> None:
    context = ssl.create_default_context(cafile=str(own.authority))
    plain = socket.create_connection(door.address, timeout=TIMEOUT_S)
    with context.wrap_socket(plain, server_hostname=own.name) as tls:
        assert tls.recv(1), "refused"


def without_tls(door: Door, _: Credentials, __: Credentials) -> None:
    with socket.create_connection(door.address, timeout=TIMEOUT_S) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        while plain.recv(4096):
            pass
    raise ConnectionResetError("refused")


@pytest.mark.parametrize(
    "intrusion", [with_wrong_token, with_wrong_certificate, without_certificate, without_tls]
)
def test_strangers_are_refused_and_logged_and_the_job_goes_on(
    intrusion: Callable[[Door, Credentials, Credentials], None],
    credentials: Credentials,
    strange: Credentials,
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door("127.0.0.1")
    message = noise(MIB)
    with pair(credentials, door=door) as transports:
        with pytest.raises((OSError, WireError, AssertionError)):
            intrusion(door, credentials, strange)
        assert torch.equal(exchange(transports, message), message)
    assert "refused 127.0.0.1" in caplog.text


def test_a_rank_with_a_strange_certificate_is_refused_by_those_who_send_to_it(
    credentials: Credentials, strange: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    impostor = Door("127.0.0.1")
    impostor.open(strange, lambda _, __: None)
    door = Door("127.0.0.1")
    with pytest.raises(RunError, match="stream 0 of 0->1: rank 1 has no certificate that counts"):
        StreamsTransport(
            door,
            rank=0,
            addresses=[door.address, impostor.address],
            credentials=credentials,
            num_streams={},
            timeout_s=TIMEOUT_S,
        )
    impostor.close()
    assert "refused 127.0.0.1" in caplog.text


def test_a_rank_that_never_connects_is_an_error(credentials: Credentials) -> None:
    door, silent = Door("127.0.0.1"), Door("127.0.0.1")
    with pytest.raises(RunError, match="connecting stream 0 of 0->1"):
        StreamsTransport(
            door,
            rank=0,
            addresses=[door.address, silent.address],
            credentials=credentials,
            num_streams={},
            timeout_s=0.2,
        )
    silent.close()


def test_silent_strangers_hold_up_no_running_stream(credentials: Credentials) -> None:
    door = Door("127.0.0.1")
    message = noise(MIB)
    with pair(credentials, door=door, num_streams=2) as transports:
        strangers = [socket.create_connection(door.address, TIMEOUT_S) for _ in range(20)]
        assert torch.equal(exchange(transports, message), message)
        for stranger in strangers:
            stranger.close()


def test_malformed_frames_over_an_open_stream_end_its_connection_and_nothing_else(
    credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(5)
    door, lane = Door("127.0.0.1"), ReceivingLane()
    route = Route(0, 1, address=door.address, connect_s=TIMEOUT_S, resume_s=TIMEOUT_S)
    stream = ReceivingStream(lane, route)
    stream.start()
    door.open(credentials, lambda _, connection: stream.adopt(connection))
    arrival, into = EventHandle("receive", set()), bytearray(5)
    lane.post(arrival, memoryview(into), 0)

    assert_refused(door, credentials, rng.randbytes(wire.frame_bytes(Chunk)))
    tracemalloc.start()
    for _ in range(100):
        assert_refused(door, credentials, rng.randbytes(rng.randrange(72, 100_000)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < MIB

    connection = intrude(door, credentials)
    connection.send(Chunk(0, 0, 0, total_bytes=5, offset=0, size=5), memoryview(b"right"))
    arrival.wait(timeout_s=TIMEOUT_S)
    assert into == b"right"
    connection.close()
    door.close()
    stream.stop()
    stream.join(timeout_s=TIMEOUT_S)


def assert_refused(door: Door, credentials: Credentials, data: bytes) -> None:
    connection = intrude(door, credentials)
    try:
        with suppress(OSError):  # refused before everything was sent
            connection._tls.sendall(data)
        with pytest.raises(OSError, match=r"."):
            connection.receive_into(memoryview(bytearray(1)))
    finally:
        connection.close()


def send_and_receive(transports: tuple[Transport, Transport]) -> None:
    sender, receiver = transports
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, receiver, peer=0)
        send(sender, 11, peer=1)
        assert received.result(TIMEOUT_S) == 11


def test_nothing_is_left_behind(credentials: Credentials) -> None:
    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    with pair(credentials, num_streams=4) as transports:
        send_and_receive(transports)
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before
