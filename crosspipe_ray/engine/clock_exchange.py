"""Looks at the clocks of the other hosts of a run, over the transport that it already has.

Rank 0 asks the first rank of each other host for the time, again and again; all others wait for
nothing. Before a run and after it: only two looks tell a drift. `clock_estimate` says what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosspipe_ray import host
from crosspipe_ray.clock_estimate import HostClock, RoundTrip, clocks_of_ranks, first_ranks
from crosspipe_ray.engine import clock
from crosspipe_ray.engine.board import Board
from crosspipe_ray.engine.probing import LaneEnd, answer, ask, release
from crosspipe_ray.engine.transports import Transport

_NUM_ROUND_TRIPS = 32
_LEAST_ROUND_TRIPS = 4
_BUDGET_NS = 1_000_000_000


def exchange_clocks(
    transport: Transport, clock_ids: Sequence[str], *, timeout_s: float
) -> dict[int, list[RoundTrip]]:
    """For all ranks at once, while nothing else is under way; takes a second per host at most.

    Args:
        transport: of this rank.
        clock_ids: by rank; equal where ranks share a clock, and then nothing is exchanged.
        timeout_s: longest wait for an answer.

    Returns:
        At rank 0, round trips to the first rank of each other host; elsewhere nothing.

    Raises:
        TransportTimeout: no answer came.
        RunError: a rank is gone.
    """
    round_trips = {}
    for rank in first_ranks(clock_ids).values():
        if transport.rank == rank:
            answer(_end(transport, 0, timeout_s))
        elif transport.rank == 0:
            round_trips[rank] = _ask_the_time(_end(transport, rank, timeout_s))
    return round_trips


def _end(transport: Transport, peer: int, timeout_s: float) -> LaneEnd:
    device = torch.device("cpu")
    return LaneEnd(transport=transport, peer=peer, device=device, timeout_s=timeout_s)


def _ask_the_time(end: LaneEnd) -> list[RoundTrip]:
    """Many times, or few where an answer takes long; the first one only warms the lane."""
    deadline_ns = clock.now_ns() + _BUDGET_NS
    ask(end, num_bytes=1)
    round_trips: list[RoundTrip] = []
    while len(round_trips) < _NUM_ROUND_TRIPS:
        if len(round_trips) >= _LEAST_ROUND_TRIPS and clock.now_ns() > deadline_ns:
            break
        each = ask(end, num_bytes=1)
        round_trips.append(
            RoundTrip(each.asked_ns, each.heard_ns, each.sent_ns, each.arrived_ns[0])
        )
    release(end)
    return round_trips


class ClockWatch:
    """The clocks of a run without Ray: every rank looks at them at the same points of the run.

    Args:
        board: of this rank; it learns its clock.
        transport: of this rank; None for a single rank.
        timeout_s: longest wait for an answer.
    """

    def __init__(self, board: Board, transport: Transport | None, *, timeout_s: float) -> None:
        self._board = board
        self._transport = transport
        self._timeout_s = timeout_s
        self._clock_ids = board.gather(host.clock_id())
        self._round_trips: dict[int, list[RoundTrip]] = {}

    def look(self) -> dict[int, HostClock]:
        """Looks once more; returns the clocks that are not rank 0's, at every rank."""
        if self._transport is None or len(set(self._clock_ids)) == 1:
            return {}
        found = exchange_clocks(self._transport, self._clock_ids, timeout_s=self._timeout_s)
        for rank, round_trips in found.items():
            self._round_trips.setdefault(rank, []).extend(round_trips)
        clocks = self._board.from_first(lambda: clocks_of_ranks(self._clock_ids, self._round_trips))
        self._board.clock = clocks.get(self._board.rank)
        return clocks
