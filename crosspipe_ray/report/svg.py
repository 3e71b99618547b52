"""A timeline as an SVG picture: panels of lanes over one time axis.

The four colours stay apart for colour-blind eyes, and in grey: lighter from F over B and I to W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from crosspipe_ray.ops import COMPUTE_KINDS
from crosspipe_ray.report.axis import format_ns, ticks
from crosspipe_ray.report.colours import COLOURS, NAMES
from crosspipe_ray.report.lanes import has_several_stages, number, panel_content, shows_shares
from crosspipe_ray.report.layout import MARGIN, Page, Panel, page_of
from crosspipe_ray.timeline import Spans, Timeline

_STYLE = """<style>
text{font:12px "Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif;fill:#24292f}
.title{font-size:16px;font-weight:600}
.name{font-size:13px;font-weight:600}
.soft,.note{fill:#6e7781}
.note{font-size:12px;font-weight:400}
.end{text-anchor:end}
.middle{text-anchor:middle}
.n{font-size:9.5px;text-anchor:middle}
.s{font-size:7.5px}
.nF,.nB{fill:#fff}
.lane{fill:#f3f4f6}
.grid{stroke:#d0d7de;fill:none}
.border{stroke:#8c959f;stroke-dasharray:2 4}
.makespan{stroke:#24292f;stroke-width:1.2;stroke-dasharray:4 3}
.dp{fill:#8250df}
.m{fill:none;stroke-width:1.1}
.mF{stroke:#1f5a94}
.mB{stroke:#c7782a}"""


def timeline_svg(
    panels: Sequence[tuple[str, Timeline]],
    *,
    clusters: Sequence[str] | None = None,
    title: str = "",
) -> str:
    """Draws timelines over one another, on one time axis.

    Args:
        panels: name and timeline of each, top to bottom: planned over measured, or several methods.
        clusters: cluster of each rank, for the labels and the borders between regions.
        title: stands over everything.

    Returns:
        A standalone SVG document. A timeline of more than 20,000 ops is drawn as the share of
        each kind over time.

    Raises:
        ValueError: no panel, no rank, or panels and clusters with differing numbers of ranks.
    """
    num_ranks = _num_ranks(panels, clusters)
    page = page_of(panels, clusters or [""] * num_ranks)
    parts = [*_head(page, title), *_legend(panels), *_axis(page)]
    for panel in page.panels:
        parts += _labels(page, panel)
        parts += panel_content(page, panel)
        parts += _makespan(page, panel)
    return "\n".join([*parts, "</svg>", ""])


def _num_ranks(panels: Sequence[tuple[str, Timeline]], clusters: Sequence[str] | None) -> int:
    counts = {len(timeline.ranks) for _, timeline in panels}
    if clusters is not None:
        counts.add(len(clusters))
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"panels and clusters need one number of ranks above 0, got {counts}")
    return counts.pop()


def _text(x: float, y: float, text: str, name: str = "") -> str:
    style = f' class="{name}"' if name else ""
    return f'<text{style} x="{number(x)}" y="{number(y)}">{escape(text)}</text>'


def _line(name: str, x: float, y: float, x_end: float, y_end: float) -> str:
    ends = f'x1="{number(x)}" y1="{number(y)}" x2="{number(x_end)}" y2="{number(y_end)}"'
    return f'<line class="{name}" {ends}/>'


def _head(page: Page, title: str) -> Iterator[str]:
    width, height = number(page.width), number(page.height)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    yield f"<title>{escape(title)}</title>"
    yield _STYLE
    for kind, colour in COLOURS.items():
        yield f".{kind.name}{{fill:{colour}}} .h{kind.name}{{fill:url(#hatched-{kind.name})}}"
    yield "</style>"
    for kind, colour in COLOURS.items():
        yield (
            f'<pattern id="hatched-{kind.name}" width="5" height="5" patternUnits="userSpaceOnUse"'
            f' patternTransform="rotate(45)"><rect width="5" height="5" fill="{colour}"/>'
            '<rect width="1.4" height="5" fill="#fff" fill-opacity=".28"/></pattern>'
        )
    yield '<rect width="100%" height="100%" fill="#fff"/>'
    yield _text(MARGIN, 26, title, "title")


def _legend(panels: Sequence[tuple[str, Timeline]]) -> Iterator[str]:
    timelines = [timeline for _, timeline in panels]
    kinds = {
        kind
        for timeline in timelines
        for spans in timeline.ranks
        for kind in Spans.of(spans).ops.kinds
    }
    entries = [(kind.name, f"{kind.name} {NAMES[kind]}") for kind in COMPUTE_KINDS if kind in kinds]
    if any(map(has_several_stages, timelines)):
        entries.append(("F hF", "hatched: the rank's other stage"))
    if any(spans for timeline in timelines for spans in timeline.collectives):
        entries.append(("dp", "data parallel"))
    x = MARGIN
    for name, text in entries:
        yield f'<rect class="{name}" x="{number(x)}" y="38" width="12" height="12"/>'
        yield _text(x + 17, 48.5, text, "soft")
        x += 17 + 6.4 * len(text) + 20
    if any(timeline.sends for timeline in timelines):
        yield f'<path class="m mF" d="M{number(x)} 39l14 11"/>'
        yield _text(x + 19, 48.5, "message", "soft")


def _axis(page: Page) -> Iterator[str]:
    """Grid lines through all panels, and the times under the last one."""
    for time_ns, label in ticks(page.end_ns):
        x = page.x(time_ns)
        yield _line("grid", x, page.panels[0].lane_tops[0] - 4, x, page.axis_top + 4)
        yield _text(x, page.axis_top + 18, label, "soft middle")
    yield _line("grid", page.left, page.axis_top, page.right, page.axis_top)


def _labels(page: Page, panel: Panel) -> Iterator[str]:
    for label, top in zip(page.labels, panel.lane_tops, strict=True):
        yield _text(page.left - 8, top + panel.lane_height / 2 + 4, label, "end")
    for y in panel.borders:
        yield _line("border", MARGIN, y, page.right, y)


def _makespan(page: Page, panel: Panel) -> Iterator[str]:
    """The panel's title with its numbers, and a dashed mark where it ends."""
    timeline = panel.timeline
    x, makespan = page.x(timeline.makespan_ns), format_ns(timeline.makespan_ns)
    note = f"bubble {100 * timeline.bubble_ratio:.1f} %"
    if shows_shares(timeline):
        note += ", heights show the share of each kind"
    yield (
        f'<text class="name" x="{number(page.left)}" y="{number(panel.title_baseline)}">'
        f'{escape(panel.name)}<tspan class="note" dx="10">{note}</tspan></text>'
    )
    yield _line("makespan", x, panel.lane_tops[0] - 8, x, panel.bottom + 6)
    yield _text(max(x, page.left + 300), panel.title_baseline, makespan, "name end")
