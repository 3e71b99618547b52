"""Where things are in an SVG timeline, in pixels: panels of lanes over one time axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosspipe_ray.columns import NO_INTS
from crosspipe_ray.timeline import Message, Spans, Timeline

MARGIN = 16.0
_RIGHT = 28.0
_LETTER_WIDTH = 6.6
_MIN_WIDTH, _MAX_WIDTH = 1000.0, 2000.0
DIGIT_WIDTH, SMALL_DIGIT_WIDTH = 6.0, 4.6
BLOCK_GAP = 0.8
_HEADER = 64.0
_PANEL_TITLE = 34.0
_PANEL_GAP = 16.0
_FOOTER = 34.0
_LANES_HEIGHT = 560.0
_MIN_LANE_HEIGHT, _MAX_LANE_HEIGHT = 6.0, 22.0
_GAP = 4.0
_MESSAGE_GAP = 14.0
_REGION_GAP = 34.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One timeline on the page.

    Attributes:
        name: its title.
        timeline: what is drawn.
        top: upper edge of its title.
        lane_tops: upper edge of each rank's lane.
        lane_height: height of every lane.
        borders: where one region ends and the next one begins.
    """

    name: str
    timeline: Timeline
    top: float
    lane_tops: tuple[float, ...]
    lane_height: float
    borders: tuple[float, ...]

    @property
    def bottom(self) -> float:
        """Lower edge of the last lane."""
        return self.lane_tops[-1] + self.lane_height

    @property
    def title_baseline(self) -> float:
        """Where the text of the title stands."""
        return self.lane_tops[0] - 12.0

    def message_ends(self, message: Message) -> tuple[float, float]:
        """Heights at which a message leaves the sender's lane and reaches the receiver's."""
        src, dst = self.lane_tops[message.src], self.lane_tops[message.dst]
        return (src + self.lane_height, dst) if src < dst else (src, dst + self.lane_height)


@dataclass(frozen=True, slots=True)
class Page:
    """The whole picture.

    Attributes:
        panels: top to bottom.
        labels: of the lanes; the same for all panels.
        end_ns: the time that every panel's axis ends at.
        num_digits: of the highest microbatch.
        width: grows with the number of ops, so that their numbers can be read.
        height: of everything.
    """

    panels: tuple[Panel, ...]
    labels: tuple[str, ...]
    end_ns: int
    num_digits: int
    width: float
    height: float

    @property
    def left(self) -> float:
        """Left end of the axis."""
        return _left(self.labels)

    @property
    def right(self) -> float:
        """Right end of the axis."""
        return self.width - _RIGHT

    @property
    def axis_top(self) -> float:
        """Where the axis line is."""
        return self.height - _FOOTER

    def x(self, time_ns: int) -> float:
        """Horizontal place of a time."""
        return self.left + (self.right - self.left) * time_ns / self.end_ns


def page_of(panels: Sequence[tuple[str, Timeline]], clusters: Sequence[str]) -> Page:
    """Stacks the panels.

    Args:
        panels: name and timeline of each.
        clusters: cluster of each rank; the same for all panels.
    """
    placed: list[Panel] = []
    top = _HEADER
    for name, timeline in panels:
        placed.append(_place(name, timeline, clusters, top))
        top = placed[-1].bottom + _PANEL_GAP
    lanes = [Spans.of(lane) for _, timeline in panels for lane in timeline.ranks]
    labels = tuple(_label(rank, cluster) for rank, cluster in enumerate(clusters))
    end_ns = max(1, *(timeline.makespan_ns for _, timeline in panels))
    num_digits = len(str(max((lane.ops.last_microbatch for lane in lanes), default=0)))
    sides = _left(labels) + _RIGHT
    width = _width(lanes, sides, end_ns, num_digits)
    return Page(tuple(placed), labels, end_ns, num_digits, width, top + _FOOTER)


def _label(rank: int, cluster: str) -> str:
    return f"rank {rank} \N{MIDDLE DOT} {cluster}" if cluster else f"rank {rank}"


def _left(labels: Sequence[str]) -> float:
    return MARGIN + _LETTER_WIDTH * max(map(len, labels)) + 12


def _width(lanes: Sequence[Spans], sides: float, end_ns: int, num_digits: int) -> float:
    """As wide as three quarters of the blocks need for their numbers, if that is not too wide."""
    durations = np.sort(np.concatenate([NO_INTS, *(lane.end_ns - lane.start_ns for lane in lanes)]))
    short_ns = int(durations[len(durations) // 4]) if len(durations) else 0
    if short_ns == 0:
        return _MIN_WIDTH
    block = SMALL_DIGIT_WIDTH * num_digits + BLOCK_GAP
    width = math.ceil(sides + block * end_ns / short_ns)
    return width if _MIN_WIDTH < width < _MAX_WIDTH else _MIN_WIDTH


def _place(name: str, timeline: Timeline, clusters: Sequence[str], top: float) -> Panel:
    num_ranks = len(timeline.ranks)
    height = min(_MAX_LANE_HEIGHT, max(_MIN_LANE_HEIGHT, _LANES_HEIGHT / num_ranks - _GAP))
    neighbours = {tuple(sorted((message.src, message.dst))) for message in timeline.sends}
    tops, borders = [top + _PANEL_TITLE], []
    for rank in range(1, num_ranks):
        gap = _MESSAGE_GAP if (rank - 1, rank) in neighbours else _GAP
        if clusters[rank - 1] != clusters[rank]:
            gap = _REGION_GAP
            borders.append(tops[-1] + height + gap / 2)
        tops.append(tops[-1] + height + gap)
    return Panel(name, timeline, top, tuple(tops), height, tuple(borders))
