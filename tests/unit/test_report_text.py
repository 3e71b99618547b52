from io import StringIO

from rich.console import Console

from crosspipe_ray.ops import Kind, Op, parse_op
from crosspipe_ray.report.text import timeline_text
from crosspipe_ray.timeline import Span, Timeline

MS = 1_000_000


def timeline(*ranks: str) -> Timeline:
    """Ranks written as ops of one millisecond each; ``.`` is an idle millisecond."""
    lanes = tuple(
        tuple(
            Span(parse_op(word), index * MS, (index + 1) * MS)
            for index, word in enumerate(rank.split())
            if word != "."
        )
        for rank in ranks
    )
    return Timeline(lanes, makespan_ns=max(len(rank.split()) for rank in ranks) * MS)


TWO_RANKS = timeline("0F0 0F1 . 0I0 0W0 0I1 0W1", ". 1F0 1I0 1W0 1F1 1I1 1W1")


def test_grid_of_a_small_schedule() -> None:
    assert timeline_text(TWO_RANKS, clusters=["us", "eu"], width=45).plain.splitlines() == [
        "rank 0 us |F0--F1--....I0--W0--I1--W1--|",
        "----------------------------------------",
        "rank 1 eu |....F0--I0--W0--F1--I1--W1--|",
        "           0                   5 ms",
        "makespan 7.000 ms, bubble 14.3%",
    ]


def test_letters_remain_where_numbers_do_not_fit() -> None:
    assert timeline_text(TWO_RANKS, width=16).plain.splitlines()[:2] == [
        "rank 0 |FF.IWIW|",
        "rank 1 |.FIWFIW|",
    ]


def test_stage_is_shown_where_a_rank_holds_several() -> None:
    wave = timeline("0F0 . 3F0 3B0 0B0")
    assert timeline_text(wave, width=40).plain.splitlines()[0] == (
        "rank 0 |0F0---......3F0---3B0---0B0---|"
    )


def test_many_more_ops_than_columns_still_fill_the_grid() -> None:
    spans = tuple(Span(Op(0, Kind.F, m), m * MS, (m + 1) * MS) for m in range(1000))
    row = timeline_text(Timeline((spans,), makespan_ns=1000 * MS), width=50).plain.splitlines()[0]
    assert row == f"rank 0 |{'F' * 41}|"


def test_colours_take_the_place_of_dashes() -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=60)
    console.print(timeline_text(TWO_RANKS, width=60, colour=True))
    assert isinstance(console.file, StringIO)
    output = console.file.getvalue()
    assert "\x1b[38;2;255;255;255;48;2;31;90;148mF0" in output
    assert "-" not in output


def test_lines_are_never_wider_than_the_terminal() -> None:
    for width in range(20, 120, 7):
        lines = timeline_text(TWO_RANKS, clusters=["us", "eu"], width=width).plain.splitlines()
        assert max(map(len, lines[:-1])) <= width


def test_empty_timeline_is_drawn() -> None:
    assert timeline_text(Timeline(((),)), width=20).plain.startswith("rank 0 |...........|")
