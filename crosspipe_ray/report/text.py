"""A timeline in the terminal: one row per rank, time to the right.

An op begins with its letter and microbatch and lasts as many columns as it has dashes after them;
dots are idle time::

    rank 0 us |F0-F1-...I0-F2-W0-|
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from rich.text import Text

from crosspipe_ray.ops import Op
from crosspipe_ray.report.axis import format_ns, ticks
from crosspipe_ray.report.colours import COLOURS, INKS
from crosspipe_ray.timeline import Span, Spans, Timeline

_COLUMNS_PER_TICK = 8
_MAX_COLUMNS_PER_UNIT = 6


def timeline_text(
    timeline: Timeline,
    *,
    clusters: Sequence[str] | None = None,
    width: int = 100,
    colour: bool = False,
) -> Text:
    """Draws a timeline as lines of text.

    Args:
        timeline: planned or measured.
        clusters: cluster of each rank, for the labels and the borders between regions.
        width: columns of the terminal.
        colour: whether the terminal shows colours.

    Returns:
        Lines for `rich.console.Console.print`; ``.plain`` is the bare text.
    """
    labels = _labels(len(timeline.ranks), clusters)
    columns = _num_columns(timeline, max(1, width - len(labels[0]) - 3))
    lines = []
    for rank, spans in enumerate(timeline.ranks):
        if clusters and rank and clusters[rank] != clusters[rank - 1]:
            lines.append(Text("-" * (len(labels[0]) + columns + 3), style="dim"))
        several_stages = len(Spans.of(spans).ops.stages) > 1
        cells = _cells(spans, timeline.makespan_ns, columns, several_stages, colour)
        lines.append(Text.assemble(labels[rank], " |", *cells, "|"))
    lines.append(Text(" " * (len(labels[0]) + 2) + _axis(timeline.makespan_ns, columns), "dim"))
    makespan, bubble = format_ns(timeline.makespan_ns), timeline.bubble_ratio
    lines.append(Text(f"makespan {makespan}, bubble {bubble:.1%}"))
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _labels(num_ranks: int, clusters: Sequence[str] | None) -> list[str]:
    names = [
        f"rank {rank} {clusters[rank] if clusters else ''}".strip() for rank in range(num_ranks)
    ]
    return [name.ljust(max(map(len, names))) for name in names]


def _num_columns(timeline: Timeline, room: int) -> int:
    """All the room; less where that makes every op a whole number of columns."""
    end_ns = timeline.makespan_ns
    times = (times for lane in timeline.ranks for times in Spans.of(lane).columns[1:])
    unit_ns = math.gcd(end_ns, *(int(np.gcd.reduce(each)) for each in times))
    num_units = end_ns // unit_ns if unit_ns else 0
    if not 0 < num_units <= room:
        return room
    return num_units * min(_MAX_COLUMNS_PER_UNIT, room // num_units)


def _cells(
    spans: Sequence[Span], end_ns: int, columns: int, several_stages: bool, colour: bool
) -> Iterator[str | tuple[str, str]]:
    """Each column shows the op that runs in its middle."""
    for span, run in groupby(_owners(spans, end_ns, columns)):
        length = len(list(run))
        if span is None:
            yield (" " if colour else ".") * length
        else:
            kind = span.op.kind
            cell = _name(span.op, length, several_stages).ljust(length, " " if colour else "-")
            yield (cell, f"{INKS[kind]} on {COLOURS[kind]}") if colour else cell


def _owners(spans: Sequence[Span], end_ns: int, columns: int) -> Iterator[Span | None]:
    starts = Spans.of(spans).start_ns.tolist()
    for column in range(columns):
        time_ns = (2 * column + 1) * end_ns // (2 * columns)
        before = bisect_right(starts, time_ns) - 1
        yield spans[before] if before >= 0 and time_ns < spans[before].end_ns else None


def _name(op: Op, length: int, several_stages: bool) -> str:
    """As much of the op's text as fits; its stage only where the rank does not say it."""
    short = f"{op.kind.name}{op.microbatch}"
    names = [str(op), short] if several_stages else [short]
    return next((name for name in names if len(name) <= length), op.kind.name)


def _axis(end_ns: int, columns: int) -> str:
    line = ""
    for time_ns, label in ticks(end_ns, max_ticks=max(1, columns // _COLUMNS_PER_TICK)):
        column = time_ns * columns // end_ns if end_ns else 0
        if column >= len(line) and column + len(label) <= columns:
            line = line.ljust(column) + label
    return line
