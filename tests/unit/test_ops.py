import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import Kind, Op, parse_op, receive_for, receive_of

WHOLE_STAGE = (Kind.UNSHARD, Kind.REDUCE_GRAD)


@given(stage=st.integers(0, 999), kind=st.sampled_from(Kind), microbatch=st.integers(0, 9999))
def test_every_op_reads_back(stage: int, kind: Kind, microbatch: int) -> None:
    op = Op(stage, kind, None if kind in WHOLE_STAGE else microbatch)
    assert parse_op(str(op)) == op


@pytest.mark.parametrize(
    ("text", "op"),
    [
        ("2F0", Op(2, Kind.F, 0)),
        ("1I3", Op(1, Kind.I, 3)),
        ("10W12", Op(10, Kind.W, 12)),
        ("0B2", Op(0, Kind.B, 2)),
        ("0SEND_F1", Op(0, Kind.SEND_F, 1)),
        ("1RECV_B0", Op(1, Kind.RECV_B, 0)),
        ("3UNSHARD", Op(3, Kind.UNSHARD, None)),
        ("3REDUCE_GRAD", Op(3, Kind.REDUCE_GRAD, None)),
        (" 2F0 ", Op(2, Kind.F, 0)),
    ],
)
def test_torch_grammar(text: str, op: Op) -> None:
    assert parse_op(text) == op


@pytest.mark.parametrize("text", ["", "F0", "2X0", "2F0x", "-1F0", "2f0", "2 F 0"])
def test_what_is_no_op_is_named(text: str) -> None:
    with pytest.raises(ScheduleError, match=f"'{text}' is no op"):
        parse_op(text)


def test_compute_op_needs_a_microbatch() -> None:
    with pytest.raises(ScheduleError, match="'2F' is no op: F takes a microbatch"):
        parse_op("2F")


def test_op_of_a_whole_stage_takes_no_microbatch() -> None:
    with pytest.raises(ScheduleError, match="UNSHARD takes no microbatch"):
        parse_op("2UNSHARD0")


def test_send_arrives_at_the_neighbour() -> None:
    assert receive_of(parse_op("1SEND_F2")) == parse_op("2RECV_F2")
    assert receive_of(parse_op("1SEND_B2")) == parse_op("0RECV_B2")


@pytest.mark.parametrize(
    ("op", "receive"), [("1F0", "1RECV_F0"), ("1I0", "1RECV_B0"), ("1B0", "1RECV_B0")]
)
def test_what_a_compute_op_waits_for(op: str, receive: str) -> None:
    assert receive_for(parse_op(op)) == parse_op(receive)


def test_weight_backward_waits_for_no_message() -> None:
    assert receive_for(parse_op("1W0")) is None
