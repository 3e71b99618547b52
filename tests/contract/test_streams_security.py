"""Who the streams transport lets in, and what others can see and do."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosspipe_ray.engine.transports import EventHandle
from crosspipe_ray.engine.transports.streams import (
    Credentials,
    Door,
    StreamsTransport,
    wire,
)
from crosspipe_ray.engine.transports.streams.connection import Connection, Route
from crosspipe_ray.engine.transports.streams.lanes import ReceivingLane
from crosspipe_ray.engine.transports.streams.receiving import ReceivingStream
from crosspipe_ray.engine.transports.streams.wire import Chunk, Hello, WireError
from crosspipe_ray.errors import ConfigError, RunError
from tests.contract.stream_pairs import exchange, noise, pair, proxied
from tests.contract.transport_contract import MIB, TIMEOUT_S


def test_nothing_is_readable_on_the_way(credentials: Credentials) -> None:
    secret = b"weights that are worth a lot"
    message = torch.frombuffer(bytearray(secret * 1000), dtype=torch.uint8)
    with proxied(credentials) as (proxy, transports):
        exchange(transports, message)
        assert proxy.num_bytes > len(secret) * 1000
        assert secret[:16] not in proxy.recorded
        assert credentials.token[:16] not in proxy.recorded


def test_credentials_that_are_no_good_are_an_error(credentials: Credentials) -> None:
    with pytest.raises(ConfigError, match=r"no usable certificates .*nowhere\.pem"):
        replace(credentials, authority=Path("nowhere.pem"))
    with pytest.raises(ValueError, match="3 bytes: at least 16"):
        replace(credentials, token=b"abc")


HELLO = Hello(0, 1, 0, 1, b"n" * wire.NONCE_BYTES)


def intrude(door: Door, credentials: Credentials, *, checks_server: bool = True) -> Connection:
    """Comes to a door as the first stream of rank 0."""
    context = credentials.client
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
