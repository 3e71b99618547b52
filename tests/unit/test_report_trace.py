import json
from typing import Any

from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.report.trace import trace_events
from crosspipe_ray.timeline import Message, Span, Timeline

US = 1000
TIMELINE = Timeline(
    ranks=(
        (Span(Op(0, Kind.F, 0), 0, 10 * US), Span(Op(0, Kind.B, 0), 50 * US, 70 * US)),
        (
            Span(Op(1, Kind.F, 0), 15 * US, 25 * US),
            Span(Op(1, Kind.I, 0), 25 * US, 35 * US),
            Span(Op(1, Kind.W, 0), 35 * US, 45 * US),
        ),
    ),
    sends=(
        Message(Op(0, Kind.SEND_F, 0), 0, 1, 10 * US, 12 * US, 15 * US),
        Message(Op(1, Kind.SEND_B, 0), 1, 0, 35 * US, 37 * US, 50 * US),
    ),
    collectives=((Span(Op(0, Kind.REDUCE_GRAD, None), 70 * US, 80 * US),), ()),
    makespan_ns=80 * US,
)


def events(phase: str, **wanted: object) -> list[dict[str, Any]]:
    trace = trace_events([("planned", TIMELINE), ("measured", TIMELINE)], clusters=["us", "eu"])
    assert json.loads(json.dumps(trace)) == trace
    found: list[dict[str, Any]] = trace["traceEvents"]
    return [e for e in found if e["ph"] == phase and wanted.items() <= e.items()]


def test_process_per_panel_and_thread_per_rank() -> None:
    processes = [event["args"]["name"] for event in events("M", name="process_name")]
    threads = {e["tid"]: e["args"]["name"] for e in events("M", name="thread_name", pid=1)}
    assert processes == ["planned", "measured"]
    assert threads == {0: "rank 0 us", 1: "rank 0 us data parallel", 2: "rank 1 eu"}


def test_op_is_a_complete_event_in_microseconds() -> None:
    (event,) = events("X", name="1I0", pid=0)
    assert (event["tid"], event["ts"], event["dur"], event["cat"]) == (2, 25.0, 10.0, "I")
    assert event["args"] == {"stage": 1, "microbatch": 0}


def test_collective_has_its_own_thread() -> None:
    (event,) = events("X", name="0REDUCE_GRAD", pid=0)
    assert event["tid"] == 1


def test_flows_pair_up_inside_the_ops_they_join() -> None:
    starts, ends = events("s"), events("f")
    assert sorted(e["id"] for e in starts) == sorted(e["id"] for e in ends) == [0, 1, 2, 3]
    assert all(event["bp"] == "e" for event in ends)
    for event in starts + ends:
        (_op,) = [
            op
            for op in events("X", pid=event["pid"], tid=event["tid"])
            if op["ts"] <= event["ts"] < op["ts"] + op["dur"]
        ]


def test_flow_joins_the_ops_that_made_and_needed_the_message() -> None:
    leave, enter = events("s", name="1SEND_B0", pid=0) + events("f", name="1SEND_B0", pid=0)
    assert (leave["tid"], enter["tid"], enter["ts"]) == (2, 0, 50.0)
    assert leave["args"] == {"sent_us": 35.0, "arrived_us": 50.0}


def test_message_without_its_ops_is_left_out() -> None:
    lost = Timeline(((), ()), TIMELINE.sends, (), 80 * US)
    assert not [e for e in trace_events([("m", lost)])["traceEvents"] if e["ph"] in "sf"]
