"""What one lane of a transport really does: its receiver asks, its sender answers, all is timed.

The receiver leads: it posts its receives, then asks for so many messages of such a size; the sender
sends them back to back, and its own times after them. So every receive is posted a latency before
its message, as in a run, and neither end needs another channel to agree on what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import Handle, Transport
from crosspipe_ray.links.fit import Exchange

KIB, MIB = 1024, 1024 * 1024
_TAG = 0
_STOP = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """How much is measured on a lane.

    Attributes:
        sizes: bytes per message, from the smallest to the largest.
        num_pings: lone messages of the smallest size, for latency and jitter.
        num_repeats: lone messages, and trains, of each size.
        train_bytes: a train has as many messages as make up this much, within 6 and 32.
        budget_s: lone messages, and trains, of a size are not repeated for longer than this; where
            one train takes half of it, larger sizes are left out.
        timeout_s: longest wait for a message.
    """

    sizes: tuple[int, ...] = (
        1, KIB, 16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB,
    )  # fmt: skip
    num_pings: int = 50
    num_repeats: int = 7
    train_bytes: int = 8 * MIB
    budget_s: float = 4.0
    timeout_s: float = 60.0

    def num_messages(self, num_bytes: int) -> int:
        """Length of a train."""
        return max(6, min(32, self.train_bytes // num_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEnd:
    """One end of the lane that is measured.

    Attributes:
        transport: of this rank.
        peer: the rank at the other end.
        device: where its messages lie.
        timeout_s: longest wait for one of them.
    """

    transport: Transport
    peer: int
    device: torch.device
    timeout_s: float

    def send(self, tensor: torch.Tensor) -> Handle:
        """Starts to send."""
        return self.transport.isend(tensor, peer=self.peer, tag=_TAG)

    def receive(self, into: torch.Tensor) -> Handle:
        """Starts to receive."""
        return self.transport.irecv(into, peer=self.peer, tag=_TAG)

    def arrival_ns(self, handle: Handle) -> int:
        """Waits for a message; returns when it was there."""
        handle.wait(timeout_s=self.timeout_s)
        assert handle.done_ns is not None, "done, since the wait has ended"
        return handle.done_ns


def answer(end: LaneEnd) -> None:
    """The sender's part: answers requests until the receiver has enough.

    Raises:
        TransportTimeout: no request came in time.
        RunError: the receiver is gone.
    """
    request, handle = _post_request(end)
    while True:
        heard_ns = end.arrival_ns(handle)
        num_bytes, num_messages = request.tolist()
        if (num_bytes, num_messages) == _STOP:
            return
        request, handle = _post_request(end)  # ahead of the next one
        message = torch.zeros(num_bytes, dtype=torch.uint8, device=end.device)
        sent_ns = clock.now_ns()
        handles = [end.send(message) for _ in range(num_messages)]
        handles.append(end.send(_numbers(heard_ns, sent_ns)))
        for each in handles:
            each.wait(timeout_s=end.timeout_s)


def ask(end: LaneEnd, *, num_bytes: int, num_messages: int = 1) -> Exchange:
    """The receiver's part: asks for a train and times it.

    Raises:
        TransportTimeout: it did not come in time.
        RunError: the sender is gone.
    """
    # Written to, so that no message pays for pages that the system hands out on first touch.
    intos = torch.ones(num_messages, num_bytes, dtype=torch.uint8, device=end.device)
    report = _numbers(0, 0)
    handles = [end.receive(into) for into in intos]
    reported = end.receive(report)
    asked_ns = clock.now_ns()
    end.send(_numbers(num_bytes, num_messages))
    arrived_ns = tuple(end.arrival_ns(handle) for handle in handles)
    end.arrival_ns(reported)
    heard_ns, sent_ns = report.tolist()
    return Exchange(num_bytes, asked_ns, heard_ns, sent_ns, arrived_ns)


def release(end: LaneEnd) -> None:
    """Tells the sender that the receiver has enough."""
    end.send(_numbers(*_STOP)).wait(timeout_s=end.timeout_s)


def push(end: LaneEnd, *, num_bytes: int, num_messages: int) -> None:
    """Sends messages that the other end knows of: nothing travels the way back."""
    message = torch.zeros(num_bytes, dtype=torch.uint8, device=end.device)
    for handle in [end.send(message) for _ in range(num_messages)]:
        handle.wait(timeout_s=end.timeout_s)


def pull(end: LaneEnd, *, num_bytes: int, num_messages: int) -> None:
    """Receives what the other end pushes."""
    intos = torch.ones(num_messages, num_bytes, dtype=torch.uint8, device=end.device)
    for handle in [end.receive(into) for into in intos]:
        handle.wait(timeout_s=end.timeout_s)


def measure_lane(end: LaneEnd, settings: ProbeSettings) -> list[Exchange]:
    """Asks for all that a link's estimate needs, then releases the sender.

    The first exchanges warm the connection, and what they show is thrown away.

    Returns:
        Lone messages and trains of every size that was tried, smallest first.
    """
    smallest = settings.sizes[0]
    for num_bytes in (smallest, max(smallest, 256 * KIB)):
        ask(end, num_bytes=num_bytes, num_messages=4)
    exchanges = _repeat(partial(ask, end, num_bytes=smallest), settings.num_pings, settings)
    for num_bytes in settings.sizes:
        for num_messages in (1, settings.num_messages(num_bytes)):
            take = partial(ask, end, num_bytes=num_bytes, num_messages=num_messages)
            exchanges += _repeat(take, settings.num_repeats, settings)
        if exchanges[-1].arrived_ns[-1] - exchanges[-1].asked_ns > settings.budget_s * 1e9 / 2:
            break
    release(end)
    return exchanges


def _repeat(
    take: Callable[[], Exchange], num_times: int, settings: ProbeSettings
) -> list[Exchange]:
    """At least once, then until there are enough or the time is up."""
    deadline_ns = clock.now_ns() + round(settings.budget_s * 1e9)
    exchanges = [take()]
    while len(exchanges) < num_times and clock.now_ns() < deadline_ns:
        exchanges.append(take())
    return exchanges


def _post_request(end: LaneEnd) -> tuple[torch.Tensor, Handle]:
    request = _numbers(0, 0)
    return request, end.receive(request)


def _numbers(first: int, second: int) -> torch.Tensor:
    return torch.tensor([first, second], dtype=torch.int64, device="cpu")
