"""What happened, or will happen, and when: spans of compute, messages and collectives on one axis.

Planned and measured timelines have the same type, so that every report can lay one over the other.
All times are integer nanoseconds from the start of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from crosspipe_ray.ops import Op


class Span(NamedTuple):
    """One op occupying one rank (or, for a collective, its rank's data-parallel channel)."""

    op: Op
    start_ns: int
    end_ns: int


class Message(NamedTuple):
    """One transfer: it occupies its channel from start to end and is there at ``arrive_ns``.

    ``op`` is the SEND_F or SEND_B of the stage that produced it.
    """

    op: Op
    src: int
    dst: int
    start_ns: int
    end_ns: int
    arrive_ns: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans per rank in order, messages in channel order, and what follows from them.

    Attributes:
        ranks: compute spans of each rank, in order.
        sends: timed messages, ordered by start within each channel.
        collectives: data-parallel gathers and reductions of each rank.
        makespan_ns: end of the last op or reduction.
        peak_memory_bytes: most activation bytes held at once, per rank (empty: not known).
        peak_message_bytes: most bytes of received inputs waiting to be used, per rank (empty: not
            known).
    """

    ranks: tuple[tuple[Span, ...], ...]
    sends: tuple[Message, ...] = ()
    collectives: tuple[tuple[Span, ...], ...] = ()
    makespan_ns: int = 0
    peak_memory_bytes: tuple[int, ...] = ()
    peak_message_bytes: tuple[int, ...] = ()

    @property
    def busy_ns(self) -> tuple[int, ...]:
        """Time each rank spends computing."""
        return tuple(sum(span.end_ns - span.start_ns for span in spans) for spans in self.ranks)

    @property
    def idle_ns(self) -> tuple[int, ...]:
        """Time each rank waits within the makespan."""
        return tuple(self.makespan_ns - busy for busy in self.busy_ns)

    @property
    def bubble_ratio(self) -> float:
        """1 - work / (ranks x makespan), the share of the step in which ranks wait."""
        whole = len(self.ranks) * self.makespan_ns
        return 1.0 - sum(self.busy_ns) / whole if whole else 0.0
