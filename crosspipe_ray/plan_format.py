"""The plan file, version 1: its fields, and how ops and messages are written in JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crosspipe_ray.ops import MAX_SUB_BLOCKS, WHOLE, parse_op
from crosspipe_ray.problem import Problem, Record
from crosspipe_ray.timeline import Message, Span, Timeline

Status = Literal["proven", "gap", "time_limit"]
# Within 64 bits, in nanoseconds.
Moment = Annotated[float, Field(ge=0, le=1e15)]
RankNumber = Annotated[int, Field(ge=0, lt=1 << 31)]
PartNumber = Annotated[int, Field(ge=0, le=MAX_SUB_BLOCKS)]


class SpanEntry(Record):
    """Something with a start and an end, as a collective."""

    op: str
    start_us: Moment
    end_us: Moment


class OpEntry(SpanEntry):
    """One op of a rank, or the parts [first, end) of k of one that is split."""

    part: tuple[PartNumber, PartNumber, PartNumber] | None = None


class SendEntry(SpanEntry):
    """One timed message."""

    src: RankNumber
    dst: RankNumber
    arrive_us: Moment


class PlanHeader(Record):
    """The file, but for its ops and messages.

    ``collectives`` is one list for all ranks: an op names its stage, and so its rank.
    """

    version: Literal[1] = 1
    method: str
    status: Status
    seed: int = 0
    makespan_us: Moment
    lower_bound_us: Moment
    bubble_ratio: float
    wall_s: float = Field(ge=0)
    problem: Problem
    problem_sha256: str
    collectives: tuple[SpanEntry, ...] = ()
    peak_message_bytes: tuple[int, ...] | None = None
    p50_us: Moment | None = None
    p95_us: Moment | None = None


class PlanFile(PlanHeader):
    """The file as JSON. As Parquet, ops and messages are rows, and the rest is the metadata."""

    ranks: tuple[tuple[OpEntry, ...], ...]
    sends: tuple[SendEntry, ...] = ()


def to_ns(microseconds: float) -> int:
    """Whole nanoseconds."""
    return round(microseconds * 1000)


def span_of(entry: SpanEntry) -> Span:
    """What an entry says."""
    return Span(parse_op(entry.op), to_ns(entry.start_us), to_ns(entry.end_us))


def message_of(entry: SendEntry) -> Message:
    """What an entry says."""
    op, start_ns, end_ns = span_of(entry)
    return Message(op, entry.src, entry.dst, start_ns, end_ns, to_ns(entry.arrive_us))


def ranks_json(timeline: Timeline) -> list[list[dict[str, object]]]:
    """``ranks``: entries of each rank."""
    return [
        [
            span_json(span) if part == WHOLE else {**span_json(span), "part": list(part)}
            for span, part in timeline.entries(rank)
        ]
        for rank in range(len(timeline.ranks))
    ]


def span_json(span: Span) -> dict[str, object]:
    """An entry of ``ranks`` or ``collectives``."""
    return {"op": str(span.op), "start_us": span.start_ns / 1000, "end_us": span.end_ns / 1000}


def send_json(message: Message) -> dict[str, object]:
    """An entry of ``sends``."""
    return {
        "op": str(message.op),
        "src": message.src,
        "dst": message.dst,
        "start_us": message.start_ns / 1000,
        "end_us": message.end_ns / 1000,
        "arrive_us": message.arrive_ns / 1000,
    }
