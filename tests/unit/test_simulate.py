"""Timelines that were worked out by hand; one microsecond is one unit."""

from __future__ import annotations

from typing import Any

import pytest

from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.problem import Problem
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline
from tests.unit.builders import (
    link,
    make_problem,
    make_schedule,
    ops,
    problem_data,
    sends_us,
    spans_us,
)


def run(problem: Problem, *ranks: str, send_order: str | None = None) -> Timeline:
    order = None if send_order is None else ops(send_order)
    return simulate(problem, make_schedule(*ranks), send_order=order)


def test_without_a_link_messages_take_no_time() -> None:
    timeline = run(make_problem((0, 1), 1), "0F0 0I0 0W0", "1F0 1I0 1W0")
    assert spans_us(timeline) == {
        "0F0": (0, 1), "1F0": (1, 2), "1I0": (2, 3), "1W0": (3, 4), "0I0": (3, 4), "0W0": (4, 5),
    }  # fmt: skip
    assert timeline.sends == ()
    assert timeline.makespan_ns == 5000


def test_message_occupies_its_channel_and_arrives_a_latency_later() -> None:
    problem = make_problem((0, 1), 1, links=[link(0, 1, 5, 2)])
    timeline = run(problem, "0F0", "1F0")
    assert sends_us(timeline) == {"0SEND_F0": (1, 3, 8)}
    assert spans_us(timeline)["1F0"] == (8, 9)


def test_messages_queue_on_their_channel_while_compute_goes_on() -> None:
    problem = make_problem((0, 1), 3, links=[link(0, 1, 5, 2)])
    timeline = run(problem, "0F0 0F1 0F2", "1F0 1F1 1F2")
    assert sends_us(timeline) == {
        "0SEND_F0": (1, 3, 8), "0SEND_F1": (3, 5, 10), "0SEND_F2": (5, 7, 12),
    }  # fmt: skip
    assert spans_us(timeline)["0F2"] == (2, 3)
    assert spans_us(timeline)["1F2"] == (12, 13)


def test_links_of_one_channel_share_it() -> None:
    links = [{**link(0, 1, 0, 4), "channel": "x"}, {**link(1, 2, 0, 4), "channel": "x"}]
    timeline = run(make_problem((0, 1, 2), 2, links=links), "0F0 0F1", "1F0 1F1", "2F0 2F1")
    assert sends_us(timeline) == {
        "0SEND_F0": (1, 5, 5), "0SEND_F1": (5, 9, 9), "1SEND_F0": (9, 13, 13),
        "1SEND_F1": (13, 17, 17),
    }  # fmt: skip


def test_directions_of_a_link_do_not_share() -> None:
    links = [link(0, 1, 0, 4), link(1, 0, 0, 4)]
    timeline = run(make_problem((0, 1), 2, links=links), "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert sends_us(timeline) == {
        "0SEND_F0": (1, 5, 5), "0SEND_F1": (5, 9, 9), "1SEND_B0": (8, 12, 12),
        "1SEND_B1": (12, 16, 16),
    }  # fmt: skip


def test_messages_that_are_ready_together_go_by_stage() -> None:
    links = [{**link(0, 1, 0, 2), "channel": "x"}, {**link(1, 2, 0, 2), "channel": "x"}]
    data = problem_data((0, 1, 2), 2, links=links)
    data["stages"][0]["forward_us"], data["stages"][1]["forward_us"] = 4, 2
    timeline = run(Problem.model_validate(data), "0F0 0F1", "1F0", "2F0")
    assert spans_us(timeline)["0F1"][1] == spans_us(timeline)["1F0"][1] == 8
    assert sends_us(timeline) == {
        "0SEND_F0": (4, 6, 6), "0SEND_F1": (8, 10, 10), "1SEND_F0": (10, 12, 12),
    }  # fmt: skip


def test_plan_may_order_a_channel_otherwise() -> None:
    links = [{**link(0, 1, 0, 4), "channel": "x"}, {**link(1, 2, 0, 4), "channel": "x"}]
    problem = make_problem((0, 1, 2), 2, links=links)
    order = "0SEND_F0 1SEND_F0 0SEND_F1 1SEND_F1"
    timeline = run(problem, "0F0 0F1", "1F0 1F1", "2F0 2F1", send_order=order)
    assert sends_us(timeline) == {
        "0SEND_F0": (1, 5, 5), "1SEND_F0": (6, 10, 10), "0SEND_F1": (10, 14, 14),
        "1SEND_F1": (15, 19, 19),
    }  # fmt: skip


def test_own_order_of_a_timeline_gives_the_timeline_again() -> None:
    problem = make_problem((0, 1), 2, links=[link(0, 1, 1, 2), link(1, 0, 1, 2)])
    ranks = "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"
    timeline = run(problem, *ranks)
    order = " ".join(str(message.op) for message in timeline.sends)
    assert run(problem, *ranks, send_order=order) == timeline


@pytest.mark.parametrize(
    "order",
    ["1SEND_F0", "9SEND_F0", "0SEND_F7", "0F0", "0UNSHARD", "0SEND_F0 0SEND_F0", "0SEND_B0"],
)
def test_order_of_a_message_that_there_is_not(order: str) -> None:
    problem = make_problem((0, 1), 1, links=[link(0, 1, 1, 1)])
    with pytest.raises(ScheduleError, match="occupies no link, or is given twice"):
        run(problem, "0F0", "1F0", send_order=order)


def test_message_without_a_turn_is_a_deadlock() -> None:
    problem = make_problem((0, 1), 1, links=[link(0, 1, 1, 1)])
    with pytest.raises(ScheduleError, match=r"rank 1, op 1F0 .*or its send is missing"):
        run(problem, "0F0", "1F0", send_order="")


def test_fused_backward_sends_its_gradient_at_its_end() -> None:
    timeline = run(make_problem((0, 1), 1), "0F0 0B0", "1F0 1B0")
    assert spans_us(timeline) == {"0F0": (0, 1), "1F0": (1, 2), "1B0": (2, 4), "0B0": (4, 6)}


def test_split_backward_sends_its_gradient_after_i() -> None:
    timeline = run(make_problem((0, 1), 1), "0F0 0B0", "1F0 1I0 1W0")
    assert spans_us(timeline)["0B0"] == (3, 5)


def test_stages_of_one_rank_exchange_nothing() -> None:
    problem = make_problem((0, 1, 1, 0), 1, links=[link(0, 1, 1, 1), link(1, 0, 1, 1)])
    timeline = run(problem, "0F0 3F0", "1F0 2F0")
    assert list(sends_us(timeline)) == ["0SEND_F0", "2SEND_F0"]
    assert spans_us(timeline)["2F0"] == (4, 5)


def test_overhead_of_a_rank_is_part_of_every_op() -> None:
    timeline = run(make_problem((0,), 1, rank={"op_overhead_us": 0.5}), "0F0 0B0")
    assert spans_us(timeline) == {"0F0": (0, 1.5), "0B0": (1.5, 4)}


def test_gathers_gate_first_forwards_and_overlap_compute() -> None:
    problem = make_problem((0, 1, 1, 0), 1, stage={"gather_us": 2})
    timeline = run(problem, "0F0 3F0", "1F0 2F0")
    assert spans_us(timeline) == {
        "0UNSHARD": (0, 2), "3UNSHARD": (2, 4), "1UNSHARD": (0, 2), "2UNSHARD": (2, 4),
        "0F0": (2, 3), "1F0": (3, 4), "2F0": (4, 5), "3F0": (5, 6),
    }  # fmt: skip


def test_reductions_follow_the_last_weight_backward_one_at_a_time() -> None:
    problem = make_problem((0, 0), 1, stage={"reduce_us": 3})
    timeline = run(problem, "0F0 1F0 1B0 0I0 0W0")
    assert spans_us(timeline)["1REDUCE_GRAD"] == (4, 7)
    assert spans_us(timeline)["0REDUCE_GRAD"] == (7, 10)
    assert timeline.makespan_ns == 10_000


def test_zero_durations() -> None:
    stage = {"forward_us": 0, "backward_input_us": 0, "backward_weight_us": 0}
    timeline = run(make_problem((0, 1), 2, stage=stage), "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert set(spans_us(timeline).values()) == {(0, 0)}
    assert timeline.bubble_ratio == 0


def test_part_of_the_ops_may_run_alone() -> None:
    assert run(make_problem((0, 1), 2), "0F0", "1F0").makespan_ns == 2000


@pytest.mark.parametrize("op", ["0F1", "2F0", "9W0"])
def test_op_that_the_problem_has_not(op: str) -> None:
    with pytest.raises(ScheduleError, match=f"op {op}: the problem has none such"):
        run(make_problem((0, 1), 1), f"0F0 {op}", "1F0")


def test_ranks_that_wait_for_each_other_are_named() -> None:
    problem = make_problem((0, 1, 0, 1), 1)
    with pytest.raises(ScheduleError) as caught:
        run(problem, "2F0 0F0", "1F0 3F0")
    assert str(caught.value).startswith(
        "rank 0, op 2F0 (position 0): deadlock, it waits for the message of 1F0"
    )
    assert "[2F0]" in caught.value.grid


def test_deadlock_in_the_backward_pass_names_the_gradient() -> None:
    with pytest.raises(ScheduleError, match=r"op 0I0 .*waits for the message of 1I0"):
        run(make_problem((0, 1), 1), "0F0 0I0", "1F0")


def test_bubble_and_idle_time() -> None:
    timeline = run(make_problem((0, 1), 1), "0F0 0I0 0W0", "1F0 1I0 1W0")
    assert timeline.busy_ns == (3000, 3000)
    assert timeline.idle_ns == (2000, 2000)
    assert timeline.bubble_ratio == pytest.approx(0.4)


def test_peak_memory_counts_microbatches_between_forward_and_weight_backward() -> None:
    timeline = run(make_problem((0, 1), 2), "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    assert timeline.peak_memory_bytes == (2, 1)


def slow_receiver(**fields: Any) -> Problem:
    """Rank 1 takes three times as long as rank 0."""
    data = problem_data((0, 1), 3, **fields)
    data["stages"][1]["forward_us"] = 3
    return Problem.model_validate(data)


def test_peak_messages_wait_between_arrival_and_use() -> None:
    timeline = run(slow_receiver(), "0F0 0F1 0F2", "1F0 1F1 1F2")
    # 1F0 starts at 1; 0F1 and 0F2 arrive at 2 and 3, and wait until 4 and 7.
    assert timeline.peak_message_bytes == (0, 2000)


def test_message_that_is_used_when_another_arrives_is_released_first() -> None:
    problem = make_problem((0, 1), 3)
    assert run(problem, "0F0 0F1 0F2", "1F0 1F1 1F2").peak_message_bytes == (0, 0)
    late = run(slow_receiver(links=[link(0, 1, 0, 3)]), "0F0 0F1 0F2", "1F0 1F1 1F2")
    assert late.peak_message_bytes == (0, 0)


def test_gradients_wait_too() -> None:
    timeline = run(make_problem((0, 1), 4), "0F0 0F1 0F2 0F3 0I0", "1F0 1I0")
    assert timeline.peak_message_bytes == (1000, 0)
