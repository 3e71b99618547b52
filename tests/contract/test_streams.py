"""Streams that are lost, resumed, renewed, or gone for good."""

from __future__ import annotations

import multiprocessing
import random
import re
from pathlib import Path

import pytest
import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import host_store, join_store
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.engine.transports.streams import (
    Credentials,
    Door,
    StreamsTransport,
    exchange_addresses,
    sending,
)
from crosspipe_ray.errors import RunError
from tests.contract.credentials import make_credentials
from tests.contract.stream_pairs import exchange, noise, pair, proxied
from tests.contract.transport_contract import MIB, TIMEOUT_S, number, receive, send


@pytest.mark.parametrize(("num_streams", "cut_after_bytes"), [(1, 24 * MIB + 17), (4, 5 * MIB)])
def test_a_connection_that_dies_within_a_tensor_goes_on_where_it_was(
    credentials: Credentials,
    num_streams: int,
    cut_after_bytes: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = noise(32 * MIB)
    with proxied(credentials, [cut_after_bytes], num_streams=num_streams) as (proxy, transports):
        assert torch.equal(exchange(transports, message), message)
        assert proxy.num_cuts == 1
    resumed = re.search(r"reopened, goes on at chunk (\d+)", caplog.text)
    assert resumed is not None
    assert int(resumed[1]) > 0


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


def test_a_rank_leaves_once_others_know_what_has_arrived(credentials: Credentials) -> None:
    with proxied(credentials) as (proxy, (sender, receiver)):
        proxy.lose_answers()
        arrival = receiver.irecv(number(0), peer=0, tag=1)
        sent = sender.isend(number(1), peer=1, tag=1)
        arrival.wait(timeout_s=TIMEOUT_S)
        proxy.cut_all()
        receiver.close()
        sent.wait(timeout_s=TIMEOUT_S)


def test_a_stream_changes_its_key_before_it_is_worn_out(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "_MAX_BYTES_PER_KEY", 3 * MIB)
    message = noise(10 * MIB)
    with pair(credentials) as transports:
        assert torch.equal(exchange(transports, message), message)
    assert not caplog.text


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
    assert clock.now_ns() - started_ns < 8e9  # not the ten seconds that a lost link may take
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
