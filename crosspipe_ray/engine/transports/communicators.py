"""Torch's gloo and NCCL behind one face, and the store where the ranks meet.

The groups are made straight from their backends, not by ``init_process_group``: torch's global
state stays free for others, the two ends of a lane meet without waiting for the other ranks, and
after a failure a new group can be made at once.
"""

from __future__ import annotations

import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import TCPStore as TCPStore  # type: ignore[attr-defined]  # stub forgets it
from torch.distributed.distributed_c10d import Store, Work

from crosspipe_ray.errors import RunError

# The timeouts that count are those of Handle.wait; this one only has to be longer than any of them.
_LONGEST_WAIT = timedelta(days=7)
_RETRY_S = 0.1
_UNUSED_TAG = 2**31 - 1


def host_store(host: str, *, port: int = 0, timeout_s: float) -> TCPStore:
    """Opens the meeting point of a run on this machine.

    Args:
        host: address of this machine that the other ranks reach.
        port: 0 takes a free one, ``store.port``.
        timeout_s: longest wait for a peer to show up.
    """
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout)


def join_store(host: str, port: int, *, timeout_s: float) -> TCPStore:
    """Connects to the meeting point that another process hosts.

    Raises:
        RunError: it cannot be reached within ``timeout_s`` seconds.
    """
    try:
        _wait_for_listener(host, port, timeout_s=timeout_s)
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    except (OSError, RuntimeError) as error:
        raise RunError(f"no store at {host}:{port}: {brief(error)}") from None


def _wait_for_listener(host: str, port: int, *, timeout_s: float) -> None:
    """Goes on when somebody listens, who may only be starting; torch would print C++ frames."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except ConnectionRefusedError:
            if time.monotonic() + _RETRY_S > deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def brief(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its source or an error number."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).strip()).split(". ")[0].split("\n")[0]


class Group(Protocol):
    """What torch's backends have in common; their stubs leave it out."""

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int, /) -> Work:
        """Starts to send."""
        ...

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int, /) -> Work:
        """Starts to receive."""
        ...

    def abort(self) -> None:
        """Ends everything that was started (NCCL only)."""
        ...

    def shutdown(self) -> None:
        """Frees what the group holds."""
        ...


class Communicator(ABC):
    """Some ranks that are connected to each other.

    Attributes:
        group: starts the messages.
    """

    group: Group

    @abstractmethod
    def waiter(self) -> Callable[[Work], None]:
        """For one lane: blocks until a message is complete; RuntimeError if it is lost."""

    @abstractmethod
    def sever(self) -> None:
        """Ends every wait for a message, here and at the peers."""

    @abstractmethod
    def close(self) -> None:
        """Frees sockets, threads and memory, when all messages are complete or lost."""


class GlooCommunicator(Communicator):
    """For tensors on the CPU. Connects at once.

    It binds to the interface in GLOO_SOCKET_IFNAME, else to the address that reaches the store.

    Args:
        store: that the members have in common and nobody else uses.
        rank: of this process in the group.
        size: number of members.
        host: of the store.
        timeout_s: longest time to connect.
    """

    def __init__(self, store: Store, *, rank: int, size: int, host: str, timeout_s: float) -> None:
        gloo: Any = dist.ProcessGroupGloo  # the stubs do not know its options
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._threads = 1  # they run collectives only
        interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
        if interfaces:
            options._devices = [gloo.create_device(interface=one) for one in interfaces.split(",")]
        else:
            options._devices = [gloo.create_device(hostname=address_towards(host))]
        self.group = gloo(store, rank, size, options)
        self._peers = [peer for peer in range(size) if peer != rank]

    def waiter(self) -> Callable[[Work], None]:
        """As ``Communicator.waiter``."""
        return _wait_on_host

    def sever(self) -> None:
        """As ``Communicator.sever``: a wait that times out makes gloo close the group's sockets."""
        byte = torch.empty(1, dtype=torch.uint8, device="cpu")
        for peer in self._peers:
            with suppress(RuntimeError):
                self.group.recv([byte], peer, _UNUSED_TAG).wait(timedelta(milliseconds=1))

    def close(self) -> None:
        """As ``Communicator.close``."""
        del self.group  # there is no call for it


class NcclCommunicator(Communicator):
    """For tensors on a GPU. Connects at once.

    It does not notice that a peer is gone: waits for it end by their timeout. A receive occupies
    a part of the GPU until its message is there.

    Args:
        store: that the members have in common and nobody else uses.
        rank: of this process in the group.
        size: number of members.
        device: of the tensors.
    """

    def __init__(self, store: Store, *, rank: int, size: int, device: torch.device) -> None:
        nccl: Any = dist.ProcessGroupNCCL  # absent from builds without CUDA
        options = nccl.Options()
        # Receives are posted long before their message, and torch ends the process after this time.
        options._timeout = _LONGEST_WAIT
        # Torch warns that messages of one communicator queue up; those of a lane have to.
        os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
        group = nccl(store, rank, size, options)
        self._device = torch.empty(0, device=device).device  # with its index
        group.eager_connect_single_device(self._device)
        self.group = group

    def waiter(self) -> Callable[[Work], None]:
        """As ``Communicator.waiter``: on a stream of its own, so that nothing else has to wait."""
        stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

        def wait(work: Work) -> None:
            with torch.cuda.stream(stream):
                work.wait()  # holds up the stream, not this thread
                event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                event.record(stream)
            event.synchronize()

        return wait

    def sever(self) -> None:
        """As ``Communicator.sever``."""
        self.group.abort()

    def close(self) -> None:
        """As ``Communicator.close``."""
        self.group.shutdown()
        del self.group


def address_towards(host: str) -> str:
    """The address of this machine that packets to a host leave from; nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _wait_on_host(work: Work) -> None:
    work.wait(_LONGEST_WAIT)
