import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.report.svg import timeline_svg
from crosspipe_ray.timeline import Message, Span, Timeline

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000


def tiny(*, scale: int = 1, num_microbatches: int = 3) -> Timeline:
    """Two ranks in two regions; every op takes one unit, a message arrives half a unit later."""
    unit = scale * MS
    first, second, sends = [], [], []
    for m in range(num_microbatches):
        start = 4 * m * unit
        first.append(Span(Op(0, Kind.F, m), start, start + unit))
        arrive = start + 3 * unit // 2
        sends.append(
            Message(Op(0, Kind.SEND_F, m), 0, 1, start + unit, start + 5 * unit // 4, arrive)
        )
        second.append(Span(Op(1, Kind.F, m), arrive, arrive + unit))
        second.append(Span(Op(1, Kind.B, m), arrive + unit, arrive + 2 * unit))
    return Timeline((tuple(first), tuple(second)), tuple(sends), (), second[-1].end_ns)


def elements(svg: str, tag: str, name: str) -> list[ElementTree.Element]:
    """Elements of a tag whose class contains the name."""
    root = ElementTree.fromstring(svg)
    return [e for e in root.iter(f"{SVG}{tag}") if name in e.get("class", "").split()]


def texts(svg: str, name: str) -> list[str]:
    return ["".join(element.itertext()) for element in elements(svg, "text", name)]


def blocks(svg: str) -> list[ElementTree.Element]:
    """Rectangles of ops: those with a tooltip, which the legend's have not."""
    rects = ElementTree.fromstring(svg).iter(f"{SVG}rect")
    return [rect for rect in rects if rect.find(f"{SVG}title") is not None]


def test_one_block_per_op_with_its_microbatch() -> None:
    svg = timeline_svg([("planned", tiny())])
    assert [block.get("class") for block in blocks(svg)] == ["F"] * 3 + ["F", "B"] * 3
    assert texts(svg, "n") == ["0", "1", "2", "0", "0", "1", "1", "2", "2"]


def test_tooltip_names_op_start_and_duration() -> None:
    svg = timeline_svg([("planned", tiny())])
    titles = [block.findtext(f"{SVG}title") for block in blocks(svg)]
    assert titles[1] == "0F1: 4.000 ms + 1.000 ms"


def test_panels_share_one_time_axis() -> None:
    svg = timeline_svg([("planned", tiny()), ("measured", tiny(scale=2))])
    x = [float(block.get("x", "")) for block in blocks(svg) if block.get("class") == "F"]
    planned, measured = x[:3], x[6:9]
    assert planned[0] == measured[0]
    # Twice the time is twice the way along the axis.
    assert [end - measured[0] for end in measured] == pytest.approx(
        [2 * (end - planned[0]) for end in planned], abs=0.05
    )
    assert len(elements(svg, "text", "middle")) == len({*texts(svg, "middle")})


def test_every_panel_marks_its_makespan_and_bubble() -> None:
    svg = timeline_svg([("planned", tiny()), ("measured", tiny(scale=2))])
    assert len(elements(svg, "line", "makespan")) == 2
    assert texts(svg, "name") == [
        "plannedbubble 60.9 %",
        "11.50 ms",
        "measuredbubble 60.9 %",
        "23.00 ms",
    ]


def test_message_runs_from_the_senders_lane_to_the_receivers() -> None:
    svg = timeline_svg([("planned", tiny(num_microbatches=1))], clusters=["us", "eu"])
    (path,) = [e for e in elements(svg, "path", "mF") if e.get("stroke-opacity")]
    start, y_src, end, y_dst = map(float, re.findall(r"[\d.]+", path.get("d", "")))
    sender, receiver, _ = blocks(svg)
    assert y_src == float(sender.get("y", "")) + float(sender.get("height", ""))
    assert y_dst == float(receiver.get("y", ""))
    assert start < end == float(receiver.get("x", ""))


def test_regions_are_labelled_and_separated() -> None:
    svg = timeline_svg([("planned", tiny())], clusters=["us", "eu"])
    assert texts(svg, "end")[:2] == ["rank 0 \N{MIDDLE DOT} us", "rank 1 \N{MIDDLE DOT} eu"]
    assert len(elements(svg, "line", "border")) == 1
    assert not elements(timeline_svg([("planned", tiny())]), "line", "border")


def test_second_stage_of_a_rank_is_hatched() -> None:
    spans = (Span(Op(0, Kind.F, 0), 0, MS), Span(Op(3, Kind.F, 0), MS, 2 * MS))
    svg = timeline_svg([("wave", Timeline((spans,), makespan_ns=2 * MS))])
    assert [block.get("class") for block in blocks(svg)] == ["F", "F hF"]
    assert "hatched: the rank's other stage" in texts(svg, "soft")


def test_collectives_lie_in_their_ranks_lane() -> None:
    reduction = Span(Op(0, Kind.REDUCE_GRAD, None), 0, MS)
    timeline = Timeline(((Span(Op(0, Kind.F, 0), 0, MS),),), (), ((reduction,),), MS)
    svg = timeline_svg([("planned", timeline)])
    assert [block.get("class") for block in blocks(svg)] == ["F", "dp"]


def test_names_are_escaped() -> None:
    svg = timeline_svg([("a < b & c", tiny())], clusters=["<us>", "eu"], title="x & <y>")
    assert texts(svg, "title") == ["x & <y>"]
    assert texts(svg, "name")[0].startswith("a < b & c")
    assert texts(svg, "end")[0].endswith("<us>")


def test_very_many_ops_become_shares_of_time() -> None:
    timeline = tiny(num_microbatches=7000)
    svg = timeline_svg([("planned", timeline)])
    assert not blocks(svg)
    assert [e.get("class") for e in elements(svg, "path", "B")] == ["B"]
    assert len(svg) < 500_000
    heights = [
        float(h) for h in re.findall(r"v([\d.]+)h-", elements(svg, "path", "F")[0].get("d", ""))
    ]
    lane = float(elements(svg, "rect", "lane")[0].get("height", ""))
    # Rank 0 computes a quarter of the time.
    assert sum(heights) / len(heights) == pytest.approx(lane / 4, rel=0.05)


def test_ticks_are_evenly_spaced() -> None:
    svg = timeline_svg([("planned", tiny())])
    x = [float(element.get("x", "")) for element in elements(svg, "text", "middle")]
    steps = {round(b - a) for a, b in pairwise(x)}
    assert len(x) > 4
    assert len(steps) == 1
    assert texts(svg, "middle")[:3] == ["0", "1 ms", "2 ms"]


def test_empty_timeline_is_drawn() -> None:
    assert ElementTree.fromstring(timeline_svg([("nothing", Timeline(((), ())))])) is not None


@pytest.mark.parametrize(
    ("panels", "clusters"),
    [([], None), ([("a", Timeline(()))], None), ([("a", Timeline(((), ())))], ["us"])],
)
def test_ranks_must_agree(panels: list[tuple[str, Timeline]], clusters: list[str] | None) -> None:
    with pytest.raises(ValueError, match="number of ranks"):
        timeline_svg(panels, clusters=clusters)
