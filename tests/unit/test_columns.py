from __future__ import annotations

import pickle

import pytest

from crosspipe_ray.columns import Ops, PerRank
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import MAX_MICROBATCHES, MAX_STAGES, Kind, Op, op_code, parse_op, split_code
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.timeline import Message, Messages, Span, Spans, spans_per_rank
from tests.unit.builders import make_schedule, ops

WORDS = "0F0 2I1 1W7 3B2 0SEND_F1 5RECV_B3 1UNSHARD 4REDUCE_GRAD"


def test_rows_are_read_like_a_tuple() -> None:
    made, columns = tuple(ops(WORDS)), Ops.of(ops(WORDS))
    assert tuple(columns) == made
    assert columns == made
    assert made == columns
    assert hash(columns) == hash(made)
    assert columns[-1] == made[-1]
    assert columns[2:5] == made[2:5]
    assert tuple(reversed(columns)) == made[::-1]
    assert parse_op("1W7") in columns
    assert columns.index(parse_op("3B2")) == 3
    with pytest.raises(IndexError):
        columns[len(made)]


def test_other_rows_are_not_equal() -> None:
    assert Ops.of(ops("0F0 0F1")) != Ops.of(ops("0F0 0F2"))
    assert Ops.of(ops("0F0")) != Ops.of(ops("0F0 0F1"))
    assert Ops.of(ops("0F0")) != tuple(ops("0F1"))
    assert Ops.of([]) != Spans.of([])


def test_values_are_plain_integers() -> None:
    (span,) = Spans.of([Span(Op(0, Kind.F, 3), 1, 2)])
    assert [type(value) for value in (*span.op, span.start_ns)] == [int, Kind, int, int]


def test_spans_and_messages_keep_what_they_are_made_of() -> None:
    spans = (Span(Op(0, Kind.F, 0), 0, 5), Span(Op(1, Kind.UNSHARD, None), 5, 7))
    messages = (Message(Op(0, Kind.SEND_F, 0), 0, 1, 5, 6, 9),)
    assert Spans.of(spans) == spans
    assert Messages.of(messages) == messages
    assert spans_per_rank([spans, (), spans[:1]]) == (spans, (), spans[:1])


def test_schedules_and_views_survive_pickling() -> None:
    schedule = make_schedule("0F0 0B0", "", "1F0")
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert again.ranks[0] == pickle.loads(pickle.dumps(schedule.ranks[0]))
    assert hash(again) == hash(schedule)


def test_schedule_of_codes_is_that_of_its_ops() -> None:
    schedule = make_schedule("0F0 0B0", "", "1F0")
    assert Schedule.of_codes(schedule.ranks.flat.codes, [2, 0, 1]) == schedule
    assert [len(held) for held in schedule.ranks] == [2, 0, 1]
    assert schedule.ranks[-1] == tuple(ops("1F0"))
    assert schedule.ranks[1:] == (Ops.of([]), Ops.of(ops("1F0")))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 100])
def test_blocks_hold_all_ranks_in_order(num_rows: int) -> None:
    ranks = make_schedule("0F0 0B0", "", "1F0", "2F0 2F1 2B0 2B1", "").ranks
    seen: list[tuple[int, tuple[Op, ...]]] = []
    for which, block in ranks.blocks(num_rows):
        assert len(block.flat) <= num_rows or len(which) == 1
        seen += zip(which, map(tuple, block), strict=True)
    assert seen == list(enumerate(map(tuple, ranks)))


def test_no_ranks() -> None:
    none: PerRank[Ops] = Schedule.of([]).ranks
    assert list(none.blocks()) == []
    assert none == ()


def test_codes_sort_as_ops_do() -> None:
    made = ops("0F0 0F9 0I0 0W3 1F0 12F0 12B7")
    codes = [op_code(*op) for op in made]
    assert codes == sorted(codes)
    assert [split_code(code) for code in codes] == made


@pytest.mark.parametrize("text", [f"{MAX_STAGES}F0", f"0F{MAX_MICROBATCHES}"])
def test_numbers_that_no_code_holds_are_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="not so many stages or microbatches"):
        parse_op(text)
