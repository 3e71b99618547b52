"""k TLS connections per lane that share each tensor: for links that are not private."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch
from torch.distributed.distributed_c10d import Store

from crosspipe_ray.carriers import MAX_STREAMS
from crosspipe_ray.engine.transports.base import Handle, HandleBook, Transport
from crosspipe_ray.engine.transports.streams.connection import (
    Address,
    Connection,
    Place,
    Route,
)
from crosspipe_ray.engine.transports.streams.credentials import Credentials
from crosspipe_ray.engine.transports.streams.door import HANDSHAKE_TIMEOUT_S, Door
from crosspipe_ray.engine.transports.streams.lanes import ReceivingLane, SendingLane
from crosspipe_ray.engine.transports.streams.receiving import ReceivingStream
from crosspipe_ray.engine.transports.streams.sending import SendingStream
from crosspipe_ray.engine.transports.streams.wire import (
    MAX_MESSAGE_BYTES,
    MAX_TAG,
    Hello,
    WireError,
)
from crosspipe_ray.errors import RunError

# A thread may be in the middle of connecting, which takes two of these at most.
_CLOSE_TIMEOUT_S = 3 * HANDSHAKE_TIMEOUT_S


class StreamsTransport(Transport):
    """Messages of CPU tensors, encrypted and authenticated, over k connections per lane.

    A send is done when the receiver has confirmed its last chunk. A connection that is lost is
    opened again, and its stream goes on where it was; a rank whose door is closed is gone.

    Args:
        door: of this rank; belongs to the transport from now on.
        addresses: of all ranks' doors, by rank.
        credentials: of this rank.
        num_streams: per lane (src, dst), the same on all ranks.
        others: lanes that are connected besides, by one stream; default: all.
        timeout_s: longest time to connect to all ranks.
        resume_s: longest time that a lost connection may take to come back.

    Raises:
        RunError: a rank did not connect in time, or was refused.
        ConfigError: the credentials are no good.
        ValueError: too many streams.
    """

    def __init__(
        self,
        door: Door,
        *,
        rank: int,
        addresses: Sequence[Address],
        credentials: Credentials,
        num_streams: Mapping[tuple[int, int], int],
        others: Collection[tuple[int, int]] | None = None,
        timeout_s: float,
        resume_s: float = 10.0,
    ) -> None:
        if not all(1 <= number <= MAX_STREAMS for number in num_streams.values()):
            raise ValueError(f"num_streams {dict(num_streams)}: from 1 to {MAX_STREAMS}")
        self.rank = rank
        self.num_ranks = len(addresses)
        self._named = dict(num_streams)
        self._door = door
        self._book = HandleBook()
        self._sending: dict[int, SendingLane] = {}
        self._receiving: dict[int, ReceivingLane] = {}
        self._senders: list[SendingStream] = []
        self._receivers: dict[Place, ReceivingStream] = {}
        unnamed = permutations(range(self.num_ranks), 2) if others is None else others
        for src, dst in dict.fromkeys([*num_streams, *unnamed]):
            if rank in (src, dst):
                route = Route(
                    src,
                    dst,
                    num_streams=num_streams.get((src, dst), 1),
                    address=addresses[dst if src == rank else src],
                    connect_s=timeout_s,
                    resume_s=resume_s,
                )
                self._add_lane(route, credentials)
        self._connect(credentials, time.monotonic() + timeout_s)

    def _add_lane(self, first: Route, credentials: Credentials) -> None:
        if first.src == self.rank:
            self._sending[first.dst] = SendingLane(first.num_streams)
        else:
            self._receiving[first.src] = ReceivingLane()
        for number in range(first.num_streams):
            route = replace(first, stream=number)
            if route.src == self.rank:
                lane = self._sending[route.dst]
                self._senders.append(SendingStream(lane, route, credentials))
            else:
                self._receivers[route.place] = ReceivingStream(self._receiving[route.src], route)

    def _connect(self, credentials: Credentials, deadline: float) -> None:
        for stream in self._streams:
            stream.start()
        self._door.open(credentials, self._admit)
        for stream in self._streams:
            stream.is_settled.wait(max(0.0, deadline - time.monotonic()))
            if not stream.was_connected:
                reason = stream.error or "nobody came in time"
                self.close()
                raise RunError(f"connecting {stream.route.name}: {reason}")

    @property
    def _streams(self) -> list[SendingStream | ReceivingStream]:
        return [*self._senders, *self._receivers.values()]

    def _admit(self, hello: Hello, connection: Connection) -> None:
        stream = self._receivers.get(hello[:4])
        if stream is None:
            src, dst, number, num_streams, _ = hello
            raise WireError(f"no stream {number} of {num_streams} from rank {src} to {dst} is here")
        stream.adopt(connection)

    def warm(self, *, timeout_s: float, num_bytes: int = 4 * 1024 * 1024) -> None:
        """Sends a large message over every lane named in ``num_streams``; for all ranks.

        A new connection is slow: over 50 ms its first 64 KiB take twice as long as later ones.

        Args:
            timeout_s: longest wait for each message.
            num_bytes: for each stream.
        """
        handles = []
        for (src, dst), number in self._named.items():
            if self.rank in (src, dst):
                post, peer = (self.isend, dst) if src == self.rank else (self.irecv, src)
                message = torch.zeros(number * num_bytes, dtype=torch.uint8, device="cpu")
                handles.append(post(message, peer=peer, tag=0))
        for handle in handles:
            handle.wait(timeout_s=timeout_s)

    def isend(self, tensor: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.isend``; done when the receiver has confirmed it."""
        payload = self._memory(tensor, peer, tag)
        handle = self._book.open("send", peer=peer, tag=tag)
        self._sending[peer].post(handle, payload, tag)
        return handle

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        """As ``Transport.irecv``; the bytes go from the socket straight into the tensor."""
        memory = self._memory(into, peer, tag)
        handle = self._book.open("receive", peer=peer, tag=tag)
        self._receiving[peer].post(handle, memory, tag)
        return handle

    def _memory(self, tensor: torch.Tensor, peer: int, tag: int) -> memoryview:
        payload = self.payload(tensor, peer=peer, tag=tag)
        if payload.device.type != "cpu":
            raise ValueError(f"tag {tag}, peer {peer}: streams carry tensors on the CPU only")
        if tag > MAX_TAG or payload.numel() > MAX_MESSAGE_BYTES:
            raise ValueError(f"tag {tag}, peer {peer}, {payload.numel()} bytes: too large")
        return payload.numpy().data

    def abort(self, reason: str) -> None:
        """As ``Transport.abort``. The peers find the door closed and know."""
        self._book.abort(reason)
        self._door.shut()
        for stream in self._streams:
            stream.stop()

    def close(self) -> None:
        """As ``Transport.close``; a sender that has just lost its connection is waited for.

        Raises:
            RunError: a thread does not end.
        """
        for receiver in self._receivers.values():
            receiver.see_off()
        self.abort(f"rank {self.rank} has closed its transport")
        self._door.close()
        for stream in self._streams:
            stream.join(timeout_s=_CLOSE_TIMEOUT_S)


def exchange_addresses(store: Store, door: Door, *, rank: int, num_ranks: int) -> list[Address]:
    """Where all ranks' doors are, by rank; every rank calls this once.

    Args:
        store: that the ranks have in common, with a prefix that nobody else uses.
        door: of this rank.
        rank: of this end.
        num_ranks: of the whole run.

    Raises:
        RunError: a rank did not come within the store's timeout.
    """
    host, port = door.address
    try:
        store.set(f"door {rank}", f"{host} {port}")
        texts = [store.get(f"door {peer}").decode().split(" ") for peer in range(num_ranks)]
    except RuntimeError as error:
        raise RunError(f"streams: a rank's address is missing: {error}") from None
    return [(host, int(port)) for host, port in texts]
