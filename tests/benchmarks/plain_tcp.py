"""The bare minimum to hold transports against: one TCP connection between two ranks, no frames."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributed.distributed_c10d import Store

from crosspipe_ray.engine.transports import EventHandle, Handle, HandleBook, Transport
from crosspipe_ray.errors import RunError

_TIMEOUT_S = 120.0


class _Job(NamedTuple):
    handle: EventHandle
    memory: memoryview


class PlainTcp(Transport):
    """Two ranks that post matching messages in the same order; a send is done when it is written.

    Args:
        store: where the ranks meet.
        rank: 0 listens, 1 connects.
        host: of this rank.
    """

    def __init__(self, store: Store, *, rank: int, host: str) -> None:
        self.rank = rank
        self.num_ranks = 2
        self._book = HandleBook()
        self._socket = _accept(store, host) if rank == 0 else _dial(store)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(_TIMEOUT_S)
        self._sends = self._start(self._socket.sendall)
        self._receives = self._start(self._fill)

    def _start(self, move: Callable[[memoryview], None]) -> queue.SimpleQueue[_Job | None]:
        jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

        def run() -> None:
            while (job := jobs.get()) is not None:  # close() ends this wait
                try:
                    move(job.memory)
                except OSError as error:
                    job.handle.finish(RunError(f"{job.handle.name}: {error}"))
                else:
                    job.handle.finish()

        threading.Thread(target=run, daemon=True).start()
        return jobs

    def _fill(self, memory: memoryview) -> None:
        received = 0
        while received < len(memory):
            num_bytes = self._socket.recv_into(memory[received:])
            if num_bytes == 0:
                raise ConnectionResetError("the other rank has closed it")
            received += num_bytes

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``."""
        return self._post("send", self._sends, tensor, peer, tag)

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``."""
        return self._post("receive", self._receives, into, peer, tag)

    def _post(
        self,
        verb: str,
        jobs: queue.SimpleQueue[_Job | None],
        tensor: torch.Tensor,
        peer: int,
        tag: int,
    ) -> Handle:
        memory = self.payload(tensor, peer=peer, tag=tag).numpy().data
        handle = self._book.open(verb, peer=peer, tag=tag)
        jobs.put(_Job(handle, memory))
        return handle

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``."""
        self._book.abort(reason)
        self._sends.put(None)
        self._receives.put(None)

    def close(self) -> None:
        """As ``Transport.close``."""
        self.abort("closed")
        self._socket.close()


def _accept(store: Store, host: str) -> socket.socket:
    with socket.create_server((host, 0)) as listener:
        listener.settimeout(_TIMEOUT_S)
        store.set("plain tcp", " ".join(map(str, listener.getsockname()[:2])))
        return listener.accept()[0]


def _dial(store: Store) -> socket.socket:
    host, port = store.get("plain tcp").decode().split(" ")
    return socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
