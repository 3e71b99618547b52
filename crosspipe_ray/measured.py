"""What ranks record while they run a step, and how the records of all ranks become one timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.ops import Op, receive_of
from crosspipe_ray.timeline import Message, Span, Timeline


@dataclass(slots=True)
class RankRecord:
    """One rank's step, by the clock that all processes of its host share (nanoseconds since 1970).

    Attributes:
        spans: compute ops.
        waits: time that an op's input was waited for, under the op's name.
        sent: per SEND, the peer, the moment it was handed over and the moment it left (occupied its
            channel until, on an emulated link).
        arrived: per RECV, the moment the message was there.
        peak_posted_bytes: most bytes of receives that were posted and not yet used.
    """

    rank: int
    spans: list[Span] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)
    sent: dict[Op, tuple[int, int, int]] = field(default_factory=dict)
    arrived: dict[Op, int] = field(default_factory=dict)
    peak_posted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a rank hands to the driver after a step.

    Attributes:
        losses: per microbatch, on the rank with the last stage; else empty.
        gradient_norm: the global norm before clipping.
        exchanged_ns: when the rank knew the norm of the whole gradient; 0 in a rehearsal.
        updated_ns: when it had updated its weights.
    """

    step: int
    record: RankRecord
    losses: tuple[float, ...] = ()
    gradient_norm: float = 0.0
    exchanged_ns: int = 0
    updated_ns: int = 0


def on_one_clock(
    reports: Iterable[StepReport], clocks: Mapping[int, HostClock]
) -> list[StepReport]:
    """The reports of all ranks as rank 0's clock would have had them.

    Args:
        reports: of one step.
        clocks: of the ranks whose clock is another.
    """
    return [
        _corrected(report, clocks[report.record.rank]) if report.record.rank in clocks else report
        for report in reports
    ]


def _corrected(report: StepReport, clock: HostClock) -> StepReport:
    at, record = clock.to_reference, report.record
    return replace(
        report,
        record=replace(
            record,
            spans=[Span(op, at(start), at(end)) for op, start, end in record.spans],
            waits=[Span(op, at(start), at(end)) for op, start, end in record.waits],
            sent={op: (peer, at(start), at(end)) for op, (peer, start, end) in record.sent.items()},
            arrived={op: at(arrived) for op, arrived in record.arrived.items()},
        ),
        exchanged_ns=at(report.exchanged_ns) if report.exchanged_ns else 0,
        updated_ns=at(report.updated_ns) if report.updated_ns else 0,
    )


def step_timeline(
    reports: Iterable[StepReport], clocks: Mapping[int, HostClock] | None = None
) -> Timeline:
    """A step as rank 0's clock would have had it; arguments as for `on_one_clock`."""
    return measured_timeline(report.record for report in on_one_clock(reports, clocks or {}))


def measured_timeline(records: Iterable[RankRecord]) -> Timeline:
    """Lays the records of all ranks on one axis that starts with the first op."""
    ordered = sorted(records, key=lambda record: record.rank)
    origin = min(span.start_ns for record in ordered for span in record.spans)
    ranks = tuple(tuple(_moved(span, origin) for span in record.spans) for record in ordered)
    return Timeline(
        ranks=ranks,
        sends=_messages(ordered, origin),
        makespan_ns=max(spans[-1].end_ns for spans in ranks if spans),
        peak_message_bytes=tuple(record.peak_posted_bytes for record in ordered),
    )


def _messages(records: Sequence[RankRecord], origin: int) -> tuple[Message, ...]:
    messages = []
    for record in records:
        for send, (peer, start_ns, end_ns) in record.sent.items():
            arrived_ns = records[peer].arrived.get(receive_of(send))
            if arrived_ns is not None:
                times = (start_ns - origin, end_ns - origin, max(end_ns, arrived_ns) - origin)
                messages.append(Message(send, record.rank, peer, *times))
    return tuple(sorted(messages, key=lambda message: message.start_ns))


def _moved(span: Span, origin: int) -> Span:
    return Span(span.op, span.start_ns - origin, span.end_ns - origin)
