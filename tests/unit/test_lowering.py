from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.costs import StageCosts, Transfer, stage_costs
from crosspipe_ray.errors import InfeasibleError, ScheduleError
from crosspipe_ray.lowering import lower
from crosspipe_ray.ops import COMPUTE_KINDS, Kind, Op, producers_of, receive_for, receive_of
from crosspipe_ray.planners import fixed
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Program, check_progress, lanes
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline
from tests.unit.builders import link, make_problem, make_schedule, ops, problems, sends_us

SENDS, RECEIVES = (Kind.SEND_F, Kind.SEND_B), (Kind.RECV_F, Kind.RECV_B)
BOTH_WAYS = (link(0, 1, 3, 1), link(1, 0, 3, 1))


def programs_of(problem: Problem, *ranks: str) -> tuple[Program, ...]:
    return lower(problem, simulate(problem, make_schedule(*ranks)))


def text(program: Program) -> str:
    return " ".join(map(str, program.ops))


def on_lane(program: Program, kinds: Sequence[Kind], peer: int) -> list[Op]:
    return [op for op in program.ops if op.kind in kinds and program.peers[op] == peer]


def test_compute_ops_keep_their_order() -> None:
    problem = make_problem((0, 1), 3)
    schedule = fixed.zb_h1(problem)
    for program, order in zip(
        lower(problem, simulate(problem, schedule)), schedule.ranks, strict=True
    ):
        assert tuple(op for op in program.ops if op.kind in COMPUTE_KINDS) == order


def test_programs_of_two_ranks() -> None:
    first, second = programs_of(make_problem((0, 1), 1), "0F0 0I0 0W0", "1F0 1I0 1W0")
    assert text(first) == "0RECV_B0 0F0 0SEND_F0 0I0 0W0"
    assert text(second) == "1RECV_F0 1F0 1I0 1SEND_B0 1W0"
    assert second.peers == dict.fromkeys(ops("1RECV_F0 1SEND_B0"), 0)


def test_nothing_is_sent_within_a_rank() -> None:
    (program,) = programs_of(make_problem((0, 0), 1), "0F0 1F0 1B0 0B0")
    assert text(program) == "0F0 1F0 1B0 0B0"


def test_lanes_are_the_directed_pairs_in_use() -> None:
    problem = make_problem((0, 1, 1, 0), 1)
    assert lanes(lower(problem, simulate(problem, fixed.zb_v(problem)))) == ((0, 1), (1, 0))


def test_receive_is_posted_a_latency_and_an_op_before_the_send() -> None:
    problem = make_problem((0, 1), 5, links=BOTH_WAYS)
    timeline = simulate(problem, make_schedule("0F0 0F1 0F2 0F3 0F4 0I0", "1F0 1I0"))
    assert sends_us(timeline)["1SEND_B0"] == (7, 8, 11)
    # The latency is 3, and an op of rank 0 takes 2 at most; 0F2 starts at 2.
    assert text(lower(problem, timeline)[0]) == (
        "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0F2 0SEND_F2 0F3 0SEND_F3 0F4 0SEND_F4 0I0"
    )


def test_sends_and_receives_follow_the_order_of_the_plan() -> None:
    problem = make_problem((0, 1, 0, 1), 2, links=[link(0, 1, 0, 1)])
    schedule = make_schedule("0F0 0F1 2F0 2F1", "1F0 1F1 3F0 3F1")
    order = "0SEND_F0 2SEND_F0 0SEND_F1 2SEND_F1"
    first, second = lower(problem, simulate(problem, schedule, send_order=ops(order)))
    assert on_lane(first, SENDS, 1) == ops(order)
    assert on_lane(second, RECEIVES, 0) == ops("1RECV_F0 3RECV_F0 1RECV_F1 3RECV_F1")


def test_sends_of_one_moment_keep_the_order_of_their_ops() -> None:
    stage = {"forward_us": 0, "backward_input_us": 0, "backward_weight_us": 0}
    problem = make_problem((0, 1, 0, 1), 2, stage=stage)
    first, _ = programs_of(problem, "0F0 2F0 2B0 0B0 0F1", "1F0 3F0 3B0 1B0 1F1")
    assert on_lane(first, SENDS, 1) == ops("0SEND_F0 2SEND_F0 2SEND_B0 0SEND_F1")


def unlimited(problem: Problem) -> tuple[Timeline, tuple[Program, ...]]:
    timeline = simulate(problem, greedy_order(problem, iterations=1).schedule)
    return timeline, lower(problem, timeline)


@given(problems())
def test_lanes_have_one_order_at_both_ends(problem: Problem) -> None:
    _, programs = unlimited(problem)
    for src, dst in lanes(programs):
        sent = [receive_of(op) for op in on_lane(programs[src], SENDS, dst)]
        assert sent == on_lane(programs[dst], RECEIVES, src)


@given(problems())
def test_every_receive_is_posted_ahead_of_its_send(problem: Problem) -> None:
    timeline, programs = unlimited(problem)
    costs = stage_costs(problem)
    sent_ns = {receive_of(message.op): message.start_ns for message in timeline.sends}
    made_ns = {op: end_ns for spans in timeline.ranks for op, _, end_ns in spans}
    for program, spans in zip(programs, timeline.ranks, strict=True):
        position = 0
        for op in program.ops:
            if op.kind in COMPUTE_KINDS:
                position += 1
            elif op in sent_ns and op.kind is Kind.RECV_F and position:
                way = costs[op.stage].gradient
                assert way, "gradients go back to the stage before"
                posted_ns = spans[position].start_ns
                left_ns = max([posted_ns, *queued_until(way, timeline, costs, made_ns, posted_ns)])
                latency_ns = way.route.latency_ns if way.route else 0
                assert left_ns + latency_ns <= sent_ns[op]


def queued_until(
    way: Transfer, timeline: Timeline, costs: Sequence[StageCosts], made_ns: dict[Op, int], at: int
) -> Iterator[int]:
    """When the messages have left that were handed over to the channel by then."""
    for message in timeline.sends:
        [producer] = [op for op in producers_of(message.op) if op in made_ns]
        transfer = costs[producer.stage].transfer(producer.kind)
        assert transfer, "what F and I make goes on"
        assert transfer.route, "it took time"
        shares = way.route and way.route.channel == transfer.route.channel
        if shares and made_ns[producer] < at:
            yield message.end_ns


def test_the_news_of_a_receive_waits_behind_messages_on_its_way() -> None:
    problem = make_problem((0, 1), 5, links=[link(0, 1, 3, 4), link(1, 0, 3, 1)])
    timeline = simulate(problem, make_schedule("0F0 0F1 0F2 0F3 0F4 0I0", "1F0 1I0"))
    sent = sends_us(timeline)
    assert (sent["1SEND_B0"][0], sent["0SEND_F0"][1], sent["0SEND_F1"][1]) == (10, 5, 9)
    # The news has to leave by 7, but from 2 on, when 0F1 ends, it would wait behind 0SEND_F1 until
    # 9. An op of rank 0 takes 2 at most.
    assert text(lower(problem, timeline)[0]).startswith("0RECV_B0 0F0 0SEND_F0 0F1")


@given(problems())
def test_every_op_has_its_receive_before_it(problem: Problem) -> None:
    for program in unlimited(problem)[1]:
        posted = set()
        for op in program.ops:
            if op.kind in RECEIVES:
                posted.add(op)
            needed = receive_for(op) if op.kind in COMPUTE_KINDS else None
            assert needed is None or needed not in program.peers or needed in posted


def posted_peak(problem: Problem, program: Program) -> int:
    """Most bytes posted and not yet used, counted anew."""
    costs, held, peak = stage_costs(problem), 0, 0
    sizes = {}
    for op in program.ops:
        if op.kind in RECEIVES:
            source = costs[op.stage - 1] if op.kind is Kind.RECV_F else costs[op.stage + 1]
            transfer = source.transfer(Kind.F if op.kind is Kind.RECV_F else Kind.I)
            assert transfer is not None
            sizes[op] = transfer.num_bytes
            held += sizes[op]
            peak = max(peak, held)
        elif op.kind in COMPUTE_KINDS:
            needed = receive_for(op)
            held -= sizes.get(needed, 0) if needed else 0
    return peak


@settings(max_examples=150)
@given(problems(), st.sampled_from((0, 500, 1000, 2000, 3000, 6000)))
def test_posted_receives_stay_within_their_memory(problem: Problem, limit: int) -> None:
    timeline, programs = unlimited(problem)
    assert [program.peak_posted_bytes for program in programs] == [
        posted_peak(problem, program) for program in programs
    ]
    ranks = [
        rank.model_copy(update={"message_memory_limit_bytes": limit}) for rank in problem.ranks
    ]
    limited = problem.model_copy(update={"ranks": tuple(ranks)})
    try:
        programs = lower(limited, timeline)
    except InfeasibleError:
        return
    assert all(posted_peak(problem, program) <= limit for program in programs)


def test_tight_message_memory_posts_later() -> None:
    problem = make_problem((0, 1), 4, rank={"message_memory_limit_bytes": 1000})
    _, second = programs_of(problem, "0F0 0F1 0F2 0F3", "1F0 1F1 1F2 1F3")
    assert text(second) == "1RECV_F0 1F0 1RECV_F1 1F1 1RECV_F2 1F2 1RECV_F3 1F3"
    assert second.peak_posted_bytes == 1000


def test_message_larger_than_its_memory_names_rank_and_op() -> None:
    problem = make_problem((0, 1), 1, rank={"message_memory_limit_bytes": 999})
    with pytest.raises(
        InfeasibleError, match=r"rank 1 \(default\): .* 1 bytes too few to post 1RECV_F0"
    ):
        programs_of(problem, "0F0", "1F0")


def swapped(program: Program, first: str, second: str) -> Program:
    one, other = ops(f"{first} {second}")
    exchanged = {one: other, other: one}
    return replace(program, ops=tuple(exchanged.get(op, op) for op in program.ops))


def test_swapped_receives_are_caught() -> None:
    first, second = programs_of(make_problem((0, 1), 2), "0F0 0F1", "1F0 1F1")
    with pytest.raises(ScheduleError, match="lane 0->1: 1RECV_F0 arrives where 1RECV_F1 is"):
        check_progress([first, swapped(second, "1RECV_F0", "1RECV_F1")])


def test_send_behind_what_waits_for_its_answer_is_caught() -> None:
    first, second = programs_of(make_problem((0, 1), 1), "0F0 0B0", "1F0 1B0")
    with pytest.raises(ScheduleError, match="rank 0, op 0B0: deadlock, its input is never sent"):
        check_progress([swapped(first, "0SEND_F0", "0B0"), second])
