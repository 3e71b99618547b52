"""torch.distributed as a transport: gloo on CPU, NCCL on CUDA, one communicator per lane.

With gloo a receive counts as complete only once somebody waits for it, and a wait that times out
destroys the connection. So one thread per lane waits for its messages in order and stamps their
arrival; whoever uses the transport waits for that thread, with a timeout of their own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.distributed_c10d import PrefixStore, Work

from crosspipe_ray.engine.transports.base import EventHandle, Handle, HandleBook, Transport
from crosspipe_ray.engine.transports.communicators import (
    Communicator,
    GlooCommunicator,
    NcclCommunicator,
    TCPStore,
    brief,
)
from crosspipe_ray.errors import RunError

Backend = Literal["gloo", "nccl"]

_CLOSE_TIMEOUT_S = 10.0


class CollectiveTransport(Transport):
    """Messages over torch.distributed's backends; one rank per process.

    Args:
        store: made by ``host_store`` or ``join_store``.
        rank: of this process.
        num_ranks: of the whole run.
        lanes: directed pairs (src, dst) that get a communicator of their own; the same list on all
            ranks. All other pairs of ``members`` share one, for tensors on the CPU.
        device: of the tensors in the lanes; those on the CPU travel over gloo in any case.
        timeout_s: longest time to connect to a peer.
        backend: default: the one for the device.
        name: the same on all ranks, and another one for each transport made with this store.
        members: ranks that share a communicator, this one among them and the same list on each of
            them; default: all.

    Raises:
        RunError: a peer did not connect in time.
    """

    def __init__(
        self,
        store: TCPStore,
        *,
        rank: int,
        num_ranks: int,
        lanes: Sequence[tuple[int, int]],
        device: torch.device,
        timeout_s: float,
        backend: Backend | None = None,
        name: str = "transport",
        members: Sequence[int] | None = None,
    ) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self._store = store
        self._device = device
        self._timeout_s = timeout_s
        self._name = name
        self._book = HandleBook()
        self._teardown = threading.Lock()
        self._lanes: dict[tuple[int, int, Backend], _Lane] = {}
        self._backend: Backend = backend or ("nccl" if device.type == "cuda" else "gloo")
        self._listed = [pair for pair in dict.fromkeys(lanes) if rank in pair]
        self._members = list(range(num_ranks) if members is None else members)
        self._communicators = [self._connect_members()] if len(self._members) > 1 else []
        self._own: dict[tuple[int, int], Communicator] = {}
        # In the order of the list on all ranks, so that no two wait for each other.
        for src, dst in self._listed:
            lane = self._connect(f"{src}->{dst}", self._backend, int(rank == dst), 2)
            self._communicators.append(lane)
            self._own[src, dst] = lane

    def _connect_members(self) -> Communicator:
        size = len(self._members)
        name = f"ranks {self._members}" if size < self.num_ranks else "all ranks"
        return self._connect(name, "gloo", self._members.index(self.rank), size)

    def _connect(self, name: str, backend: Backend, rank: int, size: int) -> Communicator:
        store = PrefixStore(f"{self._name}/{name}", self._store)
        try:
            if backend == "nccl":
                return NcclCommunicator(store, rank=rank, size=size, device=self._device)
            host, timeout_s = self._store.host, self._timeout_s
            return GlooCommunicator(store, rank=rank, size=size, host=host, timeout_s=timeout_s)
        except RuntimeError as error:
            raise RunError(f"connecting {name} over {backend}: {brief(error)}") from None

    def warm(self, *, timeout_s: float, num_bytes: int = 4 * 1024 * 1024) -> None:
        """Sends a small and a large message over every listed lane; for all ranks, before step 0.

        The first large message over a WAN is slow.

        Args:
            timeout_s: longest wait for each message.
            num_bytes: size of the large message.
        """
        handles = []
        for src, dst in self._listed:
            post, peer = (self.isend, dst) if src == self.rank else (self.irecv, src)
            for size in (1, num_bytes):
                message = torch.zeros(size, dtype=torch.uint8, device=self._device)
                handles.append(post(message, peer=peer, tag=0))
        for handle in handles:
            handle.wait(timeout_s=timeout_s)

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``."""
        payload = self._payload(tensor, peer, tag, lane=(self.rank, peer))
        handle = self._book.open("send", peer=peer, tag=tag)
        lane = self._lane(self.rank, peer, payload)
        post = _Post(handle, lambda: lane.group.send([payload], lane.peer, tag))
        # gloo copies into the socket before it returns, 0.15 ms per MiB: too long for the caller.
        # But a CUDA send queues behind its caller's stream, so only the caller can start it.
        lane.post(post, starts_now=payload.is_cuda)
        return handle

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``."""
        payload = self._payload(into, peer, tag, lane=(peer, self.rank))
        handle = self._book.open("receive", peer=peer, tag=tag)
        lane = self._lane(peer, self.rank, payload)
        post = _Post(handle, lambda: lane.group.recv([payload], lane.peer, tag))
        lane.post(post, starts_now=True)
        return handle

    def _payload(
        self, tensor: torch.Tensor, peer: int, tag: int, lane: tuple[int, int]
    ) -> torch.Tensor:
        payload = self.payload(tensor, peer=peer, tag=tag)
        if payload.is_cuda and (self._backend != "nccl" or lane not in self._listed):
            raise ValueError(f"peer {peer}: CUDA tensors need NCCL and a lane of their own")
        # NCCL would send nothing for an empty tensor.
        return payload if payload.numel() else payload.new_zeros(1)

    def _lane(self, src: int, dst: int, payload: torch.Tensor) -> _Lane:
        backend: Backend = "nccl" if payload.is_cuda else "gloo"
        key = (src, dst, backend)
        if key not in self._lanes:
            self._lanes[key] = self._new_lane(src, dst, backend)
        return self._lanes[key]

    def _new_lane(self, src: int, dst: int, backend: Backend) -> _Lane:
        name = f"transport {src}->{dst} {backend}"
        if backend == self._backend and (src, dst) in self._own:
            return _Lane(name, self._own[src, dst], peer=int(src == self.rank))
        peer = self._members.index(dst if src == self.rank else src)
        return _Lane(name, self._communicators[0], peer=peer)

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``. The peers notice at once."""
        self._book.abort(reason)
        with self._teardown:
            for communicator in self._communicators:
                communicator.sever()

    def close(self) -> None:
        """As ``Transport.close``.

        Raises:
            RunError: a thread does not end.
        """
        farewell = f"rank {self.rank} has closed its transport"
        if self._book.is_empty:
            self._book.abort(farewell)
        else:
            self.abort(farewell)
        with self._teardown:
            for lane in self._lanes.values():
                lane.stop(timeout_s=_CLOSE_TIMEOUT_S)
            for communicator in self._communicators:
                communicator.close()
            self._lanes.clear()
            self._own.clear()
            self._communicators.clear()


@dataclass(slots=True)
class _Post:
    """A message of a lane; ``start`` hands it to the communicator."""

    handle: EventHandle
    start: Callable[[], Work]
    work: Work | None = None

    def lose(self, error: RuntimeError) -> None:
        self.handle.finish(RunError(f"{self.handle.name}: connection lost: {brief(error)}"))


class _Lane:
    """One directed pair: the thread that waits for its messages, in order."""

    def __init__(self, name: str, communicator: Communicator, *, peer: int) -> None:
        self.group = communicator.group
        self.peer = peer
        self._wait = communicator.waiter()
        self._posts: queue.SimpleQueue[_Post | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, post: _Post, *, starts_now: bool) -> None:
        """Starts a message here, or in the lane's thread when those before it are complete."""
        if starts_now:
            try:
                post.work = post.start()
            except RuntimeError as error:
                return post.lose(error)
        return self._posts.put(post)

    def stop(self, *, timeout_s: float) -> None:
        """Ends the thread, which must have nothing to wait for any more."""
        self._posts.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RunError(f"{self._thread.name}: its thread did not end within {timeout_s:g} s")

    def _run(self) -> None:
        while self._finish_next():
            pass

    def _finish_next(self) -> bool:
        """A function of its own, so that an idle thread keeps no tensor alive."""
        post = self._posts.get()  # stop() ends this wait
        if post is None:
            return False
        try:
            self._wait(post.work or post.start())
        except RuntimeError as error:
            post.lose(error)
        else:
            post.handle.finish()
        return True
