"""A timeline as Chrome trace events, for ui.perfetto.dev and chrome://tracing.

A process per panel, a thread per rank, and one more thread for a rank's data-parallel collectives;
arrows (flow events) from the op that sent a message to the op that needed it. Format: "Trace Event
Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from crosspipe_ray.ops import WHOLE, Op, Part, producers_of, receive_of
from crosspipe_ray.timeline import Message, Span, Timeline

Event = dict[str, Any]
_NS_PER_US = 1000


def trace_events(
    panels: Sequence[tuple[str, Timeline]], *, clusters: Sequence[str] | None = None
) -> dict[str, Any]:
    """Timelines as one trace.

    Args:
        panels: name and timeline of each, as planned and measured.
        clusters: cluster of each rank, for the names of the threads.

    Returns:
        The JSON object to write to ``trace.json``; times are microseconds.
    """
    flow_ids = itertools.count()
    events: list[Event] = []
    for process, (name, timeline) in enumerate(panels):
        events.append(_name("process_name", name, pid=process, tid=0))
        events += _threads(process, timeline, clusters)
        events += _flows(process, timeline, flow_ids)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _threads(process: int, timeline: Timeline, clusters: Sequence[str] | None) -> Iterator[Event]:
    """Rank r computes in thread 2 r and gathers and reduces in thread 2 r + 1."""
    for rank in range(len(timeline.ranks)):
        name = f"rank {rank} {clusters[rank]}" if clusters else f"rank {rank}"
        yield from _thread(process, 2 * rank, name, timeline.entries(rank))
        if rank < len(timeline.collectives) and timeline.collectives[rank]:
            collectives = timeline.collectives[rank]
            entries = ((span, WHOLE) for span in collectives)
            yield from _thread(process, 2 * rank + 1, f"{name} data parallel", entries)


def _thread(
    process: int, thread: int, name: str, entries: Iterable[tuple[Span, Part]]
) -> Iterator[Event]:
    yield _name("thread_name", name, pid=process, tid=thread)
    yield {
        "ph": "M",
        "name": "thread_sort_index",
        "pid": process,
        "tid": thread,
        "args": {"sort_index": thread},
    }
    for (op, start_ns, end_ns), part in entries:
        split = {} if part == WHOLE else {"part": list(part)}
        yield {
            "ph": "X",
            "name": str(op),
            "cat": op.kind.name,
            "pid": process,
            "tid": thread,
            "ts": start_ns / _NS_PER_US,
            "dur": (end_ns - start_ns) / _NS_PER_US,
            "args": {"stage": op.stage, "microbatch": op.microbatch, **split},
        }


def _flows(process: int, timeline: Timeline, flow_ids: Iterator[int]) -> Iterator[Event]:
    """An arrow per message whose two ops are both in the timeline."""
    # Of an op in parts: the last makes its message, and the first needs one.
    lasts = {span.op: span for lane in timeline.ranks for span in lane}
    firsts = {span.op: span for lane in timeline.ranks for span in reversed(lane)}
    for message in timeline.sends:
        producer, consumer = _ends(message, lasts, firsts)
        if producer is None or consumer is None:
            continue
        shared = {
            "name": str(message.op),
            "cat": "message",
            "id": next(flow_ids),
            "pid": process,
            "args": {
                "sent_us": message.start_ns / _NS_PER_US,
                "arrived_us": message.arrive_ns / _NS_PER_US,
            },
        }
        # A flow event belongs to the op that runs at that time: leave just before the op ends.
        leave_us = max(producer.start_ns, producer.end_ns - 1) / _NS_PER_US
        enter_us = consumer.start_ns / _NS_PER_US
        yield {"ph": "s", "tid": 2 * message.src, "ts": leave_us, **shared}
        yield {"ph": "f", "bp": "e", "tid": 2 * message.dst, "ts": enter_us, **shared}


def _ends(
    message: Message, lasts: Mapping[Op, Span], firsts: Mapping[Op, Span]
) -> tuple[Span | None, Span | None]:
    """The op that made the message and the op that needs it."""
    producers, receiver = producers_of(message.op), receive_of(message.op).stage
    consumers = [op._replace(stage=receiver) for op in producers]
    return _known(producers, lasts), _known(consumers, firsts)


def _known(ops: Iterable[Op], spans: Mapping[Op, Span]) -> Span | None:
    return next((spans[op] for op in ops if op in spans), None)


def _name(event: str, name: str, *, pid: int, tid: int) -> Event:
    return {"ph": "M", "name": event, "pid": pid, "tid": tid, "args": {"name": name}}
