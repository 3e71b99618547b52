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

    op: str = Field(description="stage, kind and microbatch, as 2F0, 2SEND_F0; 2UNSHARD has none")
    start_us: Moment = Field(description="from the start of the step")
    end_us: Moment = Field(description="likewise")


class OpEntry(SpanEntry):
    """One op of a rank, or the parts [first, end) of k of one that is split."""

    part: tuple[PartNumber, PartNumber, PartNumber] | None = Field(
        None, description="first, end and k; default: the whole op"
    )


class SendEntry(SpanEntry):
    """One timed message, which occupies its channel from start to end."""

    src: RankNumber = Field(description="rank that sends")
    dst: RankNumber = Field(description="rank that receives")
    arrive_us: Moment = Field(description="the link's latency after the end")


class PlanHeader(Record):
    """The file, but for its ops and messages."""

    version: Literal[1] = Field(1, description="of the file format")
    method: str = Field(description="that found the order")
    status: Status = Field(
        description="proven optimal for its placement; else a gap to the bound is left, "
        "with time_limit because the clock ended the search"
    )
    seed: int = Field(0, description="of the search")
    makespan_us: Moment = Field(description="to the end of the last op or reduction")
    lower_bound_us: Moment = Field(description="no order of the stages as placed is shorter")
    bubble_ratio: float = Field(description="1 - work / (ranks x makespan)")
    wall_s: float = Field(ge=0, description="that planning took")
    problem: Problem = Field(description="complete, with the stages where layers were placed")
    problem_sha256: str = Field(description="of the problem without its defaults")
    collectives: tuple[SpanEntry, ...] = Field(
        (),
        description="data-parallel gathers and reductions of all ranks in one list: an op names "
        "its stage, and so its rank",
    )
    peak_message_bytes: tuple[int, ...] | None = Field(
        None, description="most that received inputs take on each rank while they wait"
    )
    p50_us: Moment | None = Field(
        None, description="of the makespan over sampled latencies, where they were sampled"
    )
    p95_us: Moment | None = Field(None, description="likewise")


class PlanFile(PlanHeader):
    """The file as JSON. As Parquet, ops and messages are rows, and the rest is the metadata."""

    ranks: tuple[tuple[OpEntry, ...], ...] = Field(description="ops of each rank, in order")
    sends: tuple[SendEntry, ...] = Field(
        (), description="timed messages; those of one channel in the order in which it serves them"
    )


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
