"""What an SVG timeline draws inside a panel: blocks in lanes, and messages between lanes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from crosspipe_ray.ops import COMPUTE_KINDS, WHOLE, Kind, Part
from crosspipe_ray.report.axis import format_ns
from crosspipe_ray.report.layout import BLOCK_GAP, DIGIT_WIDTH, SMALL_DIGIT_WIDTH, Page, Panel
from crosspipe_ray.timeline import Span, Spans, Timeline

_MAX_BLOCKS = 20_000
_DIGIT_WIDTHS = {"n": DIGIT_WIDTH, "n s": SMALL_DIGIT_WIDTH}
_NUMBER_HEIGHT = 9.0
_BUCKET_WIDTH = 3.0
_COLLECTIVE_HEIGHT = 3.0
_MESSAGE_KINDS = {Kind.SEND_F: "F", Kind.SEND_B: "B"}


def number(value: float) -> str:
    """A coordinate with at most two decimals.

    >>> number(12.0), number(0.333)
    ('12', '0.33')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def panel_content(page: Page, panel: Panel) -> Iterator[str]:
    """The lanes of a panel with everything in them, then the messages between them."""
    shares = shows_shares(panel.timeline)
    for rank in range(len(panel.timeline.ranks)):
        top = panel.lane_tops[rank]
        yield _rect("lane", page.left, top, page.right - page.left, panel.lane_height)
        yield from _shares(page, panel, rank) if shares else _blocks(page, panel, rank)
    for rank, spans in enumerate(panel.timeline.collectives):
        top = panel.lane_tops[rank] + panel.lane_height - _COLLECTIVE_HEIGHT
        for span in spans:
            start, end = page.x(span.start_ns), page.x(span.end_ns)
            yield _rect("dp", start, top, end - start, _COLLECTIVE_HEIGHT, title=_span_title(span))
    yield from _messages(page, panel)


def shows_shares(timeline: Timeline) -> bool:
    """Whether there are too many ops for a block each."""
    return sum(map(len, timeline.ranks)) > _MAX_BLOCKS


def has_several_stages(timeline: Timeline) -> bool:
    """Whether a rank holds more than one stage."""
    return any(len(Spans.of(spans).ops.stages) > 1 for spans in timeline.ranks)


def _blocks(page: Page, panel: Panel, rank: int) -> Iterator[str]:
    """A block per op, with its microbatch; every other stage of the rank is hatched."""
    top = panel.lane_tops[rank]
    hatched = set(Spans.of(panel.timeline.ranks[rank]).ops.stages[1::2])
    for span, part in panel.timeline.entries(rank):
        kind = span.op.kind.name
        start, end = page.x(span.start_ns), page.x(span.end_ns)
        # A hair of the lane stays visible between two blocks, unless they are hairs themselves.
        width = end - start - (BLOCK_GAP if end - start > 3 else 0)
        name = f"{kind} h{kind}" if span.op.stage in hatched else kind
        title = _span_title(span, part)
        yield _rect(name, start, top, width, panel.lane_height, title=title)
        yield from _number(page, panel, span, top)


def _number(page: Page, panel: Panel, span: Span, top: float) -> Iterator[str]:
    """The microbatch in the middle of a block, in the largest letters that fit the highest one."""
    start, end = page.x(span.start_ns), page.x(span.end_ns)
    room = (end - start - BLOCK_GAP) / page.num_digits
    fitting = [name for name, width in _DIGIT_WIDTHS.items() if width <= room]
    if fitting and panel.lane_height >= _NUMBER_HEIGHT:
        x, y = (start + end - BLOCK_GAP) / 2, top + panel.lane_height / 2 + 3.4
        style, place = f"{fitting[0]} n{span.op.kind.name}", f'x="{number(x)}" y="{number(y)}"'
        yield f'<text class="{style}" {place}>{span.op.microbatch}</text>'


def _shares(page: Page, panel: Panel, rank: int) -> Iterator[str]:
    """One shape per kind: in each short piece of time, as high as the kind's share of it."""
    piece_ns = max(1, round(_BUCKET_WIDTH * page.end_ns / (page.right - page.left)))
    busy = _busy_per_piece(panel.timeline.ranks[rank], piece_ns)
    width = number(page.x(piece_ns) - page.left)
    paths: dict[Kind, list[str]] = defaultdict(list)
    for piece in sorted(busy):
        y = panel.lane_tops[rank] + panel.lane_height
        for kind in COMPUTE_KINDS:
            height = panel.lane_height * busy[piece][kind] / piece_ns
            y -= height
            if height:
                corner = f"{number(page.x(piece * piece_ns))} {number(y)}"
                paths[kind].append(f"M{corner}h{width}v{number(height)}h-{width}z")
    yield from (f'<path class="{kind.name}" d="{"".join(path)}"/>' for kind, path in paths.items())


def _busy_per_piece(spans: Sequence[Span], piece_ns: int) -> dict[int, list[int]]:
    """Busy nanoseconds of each kind in each piece of time that is not idle."""
    busy: dict[int, list[int]] = defaultdict(lambda: [0] * len(COMPUTE_KINDS))
    for op, start_ns, end_ns in spans:
        for piece in range(start_ns // piece_ns, -(-end_ns // piece_ns)):
            overlap = min(end_ns, (piece + 1) * piece_ns) - max(start_ns, piece * piece_ns)
            busy[piece][op.kind] += overlap
    return busy


def _messages(page: Page, panel: Panel) -> Iterator[str]:
    """One path per direction, a line per message; the more of them, the fainter."""
    sends = [message for message in panel.timeline.sends if message.src != message.dst]
    opacity = max(0.15, min(0.8, 120 / (len(sends) + 1)))
    for kind, name in _MESSAGE_KINDS.items():
        lines = []
        for message in sends:
            if message.op.kind is kind:
                y_src, y_dst = map(number, panel.message_ends(message))
                x_src, x_dst = number(page.x(message.start_ns)), number(page.x(message.arrive_ns))
                lines.append(f"M{x_src} {y_src}L{x_dst} {y_dst}")
        if lines:
            yield f'<path class="m m{name}" stroke-opacity="{opacity:.2f}" d="{"".join(lines)}"/>'


def _span_title(span: Span, part: Part = WHOLE) -> str:
    name = f"{span.op}" if part == WHOLE else f"{span.op} part {part}"
    return f"{name}: {format_ns(span.start_ns)} + {format_ns(span.end_ns - span.start_ns)}"


def _rect(name: str, x: float, y: float, width: float, height: float, *, title: str = "") -> str:
    place = " ".join(
        f'{key}="{number(value)}"'
        for key, value in (("x", x), ("y", y), ("width", width), ("height", height))
    )
    if not title:
        return f'<rect class="{name}" {place}/>'
    return f'<rect class="{name}" {place}><title>{escape(title)}</title></rect>'
