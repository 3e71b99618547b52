"""What happened, or will happen, and when: spans of compute, messages and collectives on one axis.

Planned and measured timelines have the same type, so that every report can lay one over the other.
All times are integer nanoseconds from the start of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np

from crosspipe_ray.columns import Columns, Ints, Ops, Parts, PerRank
from crosspipe_ray.ops import WHOLE, Op, Part


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


class Spans(Columns[Span]):
    """Spans of one rank, in order."""

    __slots__ = ()

    def __init__(self, codes: Ints, start_ns: Ints, end_ns: Ints) -> None:
        super().__init__(codes, start_ns, end_ns)

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Spans:
        """Columns of any spans."""
        if isinstance(spans, Spans):
            return spans
        spans = tuple(spans)
        times = np.array([span[1:] for span in spans], dtype=np.int64).reshape(-1, 2)
        return cls(Ops.of(span.op for span in spans).codes, *times.T)

    @property
    def ops(self) -> Ops:
        """The ops without their times."""
        return Ops(self.columns[0])

    @property
    def start_ns(self) -> Ints:
        """Starts."""
        return self.columns[1]

    @property
    def end_ns(self) -> Ints:
        """Ends."""
        return self.columns[2]

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self.ops, self.start_ns.tolist(), self.end_ns.tolist())


def spans_per_rank(ranks: Iterable[Iterable[Span]]) -> PerRank[Spans]:
    """Columns of the spans of each rank."""
    if isinstance(ranks, PerRank):
        return ranks
    lanes = [tuple(spans) for spans in ranks]
    flat = Spans.of(span for spans in lanes for span in spans)
    return PerRank.of_lengths(flat, [len(spans) for spans in lanes])


class Messages(Columns[Message]):
    """Messages with their times."""

    __slots__ = ()

    def __init__(
        self, codes: Ints, src: Ints, dst: Ints, start_ns: Ints, end_ns: Ints, arrive_ns: Ints
    ) -> None:
        super().__init__(codes, src, dst, start_ns, end_ns, arrive_ns)

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Messages:
        """Columns of any messages."""
        if isinstance(messages, Messages):
            return messages
        messages = tuple(messages)
        numbers = np.array([message[1:] for message in messages], dtype=np.int64).reshape(-1, 5)
        return cls(Ops.of(message.op for message in messages).codes, *numbers.T)

    @property
    def ops(self) -> Ops:
        """The SEND ops without their times."""
        return Ops(self.columns[0])

    def __iter__(self) -> Iterator[Message]:
        return map(Message, self.ops, *(column.tolist() for column in self.columns[1:]))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans per rank in order, messages channel by channel, and what follows from them.

    Attributes:
        ranks: compute spans of each rank, in order.
        sends: timed messages, in order within each channel.
        collectives: data-parallel gathers and reductions of each rank.
        makespan_ns: end of the last op or reduction.
        peak_memory_bytes: most activation bytes held at once, per rank (empty: not known).
        peak_message_bytes: most bytes of received inputs waiting to be used, per rank (empty: not
            known).
        parts: what parts of their ops the spans are; None: they are whole.
    """

    ranks: Sequence[Sequence[Span]]
    sends: Sequence[Message] = ()
    collectives: tuple[tuple[Span, ...], ...] = ()
    makespan_ns: int = 0
    peak_memory_bytes: tuple[int, ...] = ()
    peak_message_bytes: tuple[int, ...] = ()
    parts: PerRank[Parts] | None = None

    def entries(self, rank: int) -> Iterator[tuple[Span, Part]]:
        """Spans of a rank, each with what part of its op it is."""
        parts = repeat(WHOLE) if self.parts is None else self.parts[rank]
        return zip(self.ranks[rank], parts, strict=False)

    @property
    def busy_ns(self) -> tuple[int, ...]:
        """Time each rank spends computing."""
        lanes = map(Spans.of, self.ranks)
        return tuple(int((spans.end_ns - spans.start_ns).sum()) for spans in lanes)

    @property
    def idle_ns(self) -> tuple[int, ...]:
        """Time each rank waits within the makespan."""
        return tuple(self.makespan_ns - busy for busy in self.busy_ns)

    @property
    def bubble_ratio(self) -> float:
        """1 - work / (ranks x makespan), the share of the step in which ranks wait."""
        whole = len(self.ranks) * self.makespan_ns
        return 1.0 - sum(self.busy_ns) / whole if whole else 0.0
