"""What every transport promises, as checks that run against any of them.

A check takes ``run_ranks(num_ranks, body)``: it calls ``body(transport)`` on every rank, in threads
or in other processes (bodies can be pickled), closes each transport when its body has returned or
failed, and returns what the bodies returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import Handle, Transport, TransportTimeout
from crosspipe_ray.errors import AbortedError, RunError

Body = Callable[[Transport], Any]
RunRanks = Callable[[int, Body], list[Any]]
Check = Callable[[RunRanks], None]

TIMEOUT_S = 40.0
MIB = 1024 * 1024
PAYLOADS = [
    (torch.uint8, (0,)),
    (torch.uint8, (1,)),
    (torch.uint8, (64 * 1024,)),
    (torch.float32, (4, 0, 2)),
    (torch.float32, ()),
    (torch.float32, (2, MIB)),
    (torch.bfloat16, (128, 256)),
    (torch.bfloat16, (4, MIB)),
]


def number(value: int) -> torch.Tensor:
    return torch.tensor([value])


def send(transport: Transport, value: int, *, peer: int, tag: int = 0) -> None:
    transport.isend(number(value), peer=peer, tag=tag).wait(timeout_s=TIMEOUT_S)


def receive(transport: Transport, *, peer: int, tag: int = 0) -> int:
    into = number(-1)
    transport.irecv(into, peer=peer, tag=tag).wait(timeout_s=TIMEOUT_S)
    return int(into)


def wait_all(handles: list[Handle]) -> None:
    for handle in handles:
        handle.wait(timeout_s=TIMEOUT_S)


def eight_numbers_with_early_receives(transport: Transport) -> list[int]:
    intos = [number(-1) for _ in range(8)]
    if transport.rank == 0:
        receive(transport, peer=1)
        wait_all([transport.isend(number(10 * i), peer=1, tag=i) for i in range(8)])
    else:
        handles = [transport.irecv(into, peer=0, tag=i) for i, into in enumerate(intos)]
        send(transport, 0, peer=0)
        wait_all(handles)
    return [int(into) for into in intos]


def check_receives_may_be_posted_before_the_sends(run_ranks: RunRanks) -> None:
    assert run_ranks(2, eight_numbers_with_early_receives)[1] == [10 * i for i in range(8)]


def eight_numbers_with_late_receives(transport: Transport) -> list[int]:
    if transport.rank == 0:
        # Nobody else holds these tensors while they are under way.
        handles = [transport.isend(number(10 * i), peer=1, tag=i) for i in range(8)]
        send(transport, 0, peer=2)
        wait_all(handles)
    elif transport.rank == 2:
        receive(transport, peer=0)
        send(transport, 0, peer=1)
    else:
        receive(transport, peer=2)
        return [receive(transport, peer=0, tag=i) for i in range(8)]
    return []


def check_receives_may_be_posted_after_the_sends(run_ranks: RunRanks) -> None:
    assert run_ranks(3, eight_numbers_with_late_receives)[1] == [10 * i for i in range(8)]


def pattern(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).remainder(251).to(dtype).reshape(shape)


def all_payloads(transport: Transport) -> list[bool]:
    peer = 1 - transport.rank
    sent = [pattern(dtype, shape) for dtype, shape in PAYLOADS]
    intos = [torch.full(shape, 77, dtype=dtype) for dtype, shape in PAYLOADS]
    handles = [transport.irecv(into, peer=peer, tag=i) for i, into in enumerate(intos)]
    handles += [transport.isend(tensor, peer=peer, tag=i) for i, tensor in enumerate(sent)]
    wait_all(handles)
    return [torch.equal(*pair) for pair in zip(sent, intos, strict=True)]


def check_every_dtype_and_size_arrives_unchanged(run_ranks: RunRanks) -> None:
    assert run_ranks(2, all_payloads) == [[True] * len(PAYLOADS)] * 2


def three_steps_between_all_pairs(transport: Transport) -> list[int]:
    peers = [peer for peer in range(transport.num_ranks) if peer != transport.rank]
    received = []
    for step in range(3):
        intos = {peer: torch.empty(16 * 1024, dtype=torch.int32) for peer in peers}
        handles = [transport.irecv(into, peer=peer, tag=7) for peer, into in intos.items()]
        for peer in peers:
            tensor = torch.full_like(intos[peer], 100 * step + 10 * transport.rank + peer)
            handles.append(transport.isend(tensor, peer=peer, tag=7))
        wait_all(handles)
        assert all(bool((into == into[0]).all()) for into in intos.values())
        received += [int(into[0]) for into in intos.values()]
    return received


def check_all_pairs_talk_at_once_and_reuse_their_tags(run_ranks: RunRanks) -> None:
    for rank, received in enumerate(run_ranks(4, three_steps_between_all_pairs)):
        peers = [peer for peer in range(4) if peer != rank]
        assert received == [100 * step + 10 * peer + rank for step in range(3) for peer in peers]


def talk_beside_a_stalled_lane(transport: Transport) -> list[int]:
    peer = 1 - transport.rank
    if transport.rank == 0:
        into = number(-1)
        stalled = transport.irecv(into, peer=peer, tag=1)
        for i in range(4):
            send(transport, i, peer=peer)
        stalled.wait(timeout_s=TIMEOUT_S)
        return [int(into)]
    received = [receive(transport, peer=peer) for _ in range(4)]
    send(transport, 99, peer=peer, tag=1)
    return received


def check_a_stalled_lane_blocks_no_other(run_ranks: RunRanks) -> None:
    assert run_ranks(2, talk_beside_a_stalled_lane) == [[99], [0, 1, 2, 3]]


def done_times(transport: Transport) -> tuple[bool, list[int | None]]:
    peer = 1 - transport.rank
    if transport.rank == 0:
        receive(transport, peer=peer)
        send(transport, 5, peer=peer)
        return True, []
    handle = transport.irecv(number(-1), peer=peer, tag=0)
    was_under_way = handle.done_ns is None
    before = clock.now_ns()
    send(transport, 0, peer=peer)
    handle.wait(timeout_s=TIMEOUT_S)
    return was_under_way, [before, handle.done_ns, clock.now_ns()]


def check_a_handle_knows_when_it_was_done(run_ranks: RunRanks) -> None:
    was_under_way, times = run_ranks(2, done_times)[1]
    assert was_under_way
    assert None not in times
    assert times == sorted(times)


def wait_in_vain(transport: Transport) -> str:
    if transport.rank == 1:
        receive(transport, peer=0)
        return ""
    handle = transport.irecv(number(-1), peer=1, tag=42)
    with pytest.raises(TransportTimeout) as failure:
        handle.wait(timeout_s=0.05)
    send(transport, 0, peer=1)
    return str(failure.value)


def check_a_timeout_names_peer_and_tag(run_ranks: RunRanks) -> None:
    message = run_ranks(2, wait_in_vain)[0]
    assert "rank 1" in message
    assert "tag 42" in message


def abort_while_waiting(transport: Transport) -> str:
    handle = transport.irecv(number(-1), peer=1 - transport.rank, tag=3)
    if transport.rank == 1:
        with pytest.raises(RunError) as loss:
            handle.wait(timeout_s=TIMEOUT_S)
        return str(loss.value)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(handle.wait, timeout_s=TIMEOUT_S)
        transport.abort("somebody pressed stop")
        transport.abort("somebody pressed it again")
        error = waiter.exception(timeout=TIMEOUT_S)
    assert isinstance(error, AbortedError)
    with pytest.raises(AbortedError):
        transport.isend(number(0), peer=1, tag=0)
    return str(error)


def check_abort_wakes_its_waiters_and_the_peers(run_ranks: RunRanks) -> None:
    aborted, lost = run_ranks(2, abort_while_waiting)
    assert aborted == "somebody pressed stop"
    assert "rank 0" in lost


def outlive_a_peer(transport: Transport) -> str:
    if transport.rank == 1:
        receive(transport, peer=0)
        return ""
    handle = transport.irecv(number(-1), peer=1, tag=6)
    send(transport, 0, peer=1)
    with pytest.raises(RunError) as failure:
        handle.wait(timeout_s=TIMEOUT_S)
    assert not isinstance(failure.value, TransportTimeout | AbortedError)
    return str(failure.value)


def check_a_peer_that_leaves_ends_the_wait(run_ranks: RunRanks) -> None:
    assert "rank 1" in run_ranks(2, outlive_a_peer)[0]


def close_twice(transport: Transport) -> list[str]:
    peer = 1 - transport.rank
    handles = [transport.irecv(number(-1), peer=peer, tag=0)]
    handles.append(transport.isend(number(1), peer=peer, tag=0))
    wait_all(handles)
    transport.close()
    transport.close()
    with pytest.raises(AbortedError):
        transport.irecv(number(-1), peer=peer, tag=0)
    return [thread.name for thread in threading.enumerate() if "transport" in thread.name]


def check_close_leaves_no_thread_behind(run_ranks: RunRanks) -> None:
    assert run_ranks(2, close_twice) == [[], []]


def bad_messages(transport: Transport) -> list[str]:
    post = transport.isend if transport.rank == 0 else transport.irecv
    other = 1 - transport.rank
    messages = []
    for tensor, peer, tag in (
        (number(0), transport.rank, 0),
        (number(0), 2, 0),
        (number(0), other, -1),
        (torch.zeros(4, 4).T, other, 0),
    ):
        with pytest.raises(ValueError, match=f"{peer}|{tag}") as failure:
            post(tensor, peer=peer, tag=tag)
        messages.append(str(failure.value))
    return messages


def check_bad_messages_are_refused(run_ranks: RunRanks) -> None:
    for messages in run_ranks(2, bad_messages):
        assert len(set(messages)) == len(messages)


CHECKS: list[Check] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
