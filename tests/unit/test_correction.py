"""A profile that is wrong, the run that shows it, and the plan after that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from crosspipe_ray.correction import corrected_layers, corrected_stages, relative_deviation
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.links.correction import corrected_links
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Layer, Link, Problem
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Message, Span, Timeline
from tests.unit.builders import make_problem

# Blocks of 1 ms, messages of 1.5 ms on the channel that then take 4 ms to arrive.
TRUTH = generate(
    Recipe(num_ranks=4, num_microbatches=8, latency_ratio=4.0, bandwidth_ratio=1.5, memory=2.0)
)


def wrong_profile() -> Problem:
    """Stages of 70 to 130 % of the true times, links of half the latency and twice the rate."""
    scales = (0.7, 1.3, 0.8, 0.9)
    stages = [
        stage.model_copy(
            update={
                "forward_us": stage.forward_us * scale,
                "backward_input_us": stage.backward_input_us / scale,
                "backward_weight_us": stage.backward_weight_us * scale,
            }
        )
        for stage, scale in zip(TRUTH.stages, scales, strict=True)
    ]
    links = [scaled(link, latency=0.5, rate=2.0) for link in TRUTH.links]
    return TRUTH.model_copy(update={"stages": tuple(stages), "links": tuple(links)})


def scaled(link: Link, *, latency: float, rate: float) -> Link:
    assert link.bandwidth_bytes_per_s is not None
    return link.model_copy(
        update={
            "latency_us": link.latency_us * latency,
            "bandwidth_bytes_per_s": link.bandwidth_bytes_per_s * rate,
        }
    )


def noisy(timeline: Timeline, seed: int) -> Timeline:
    """What a run would have seen: ops up to 1 % longer, messages up to 20 us late, rare stalls."""
    random = np.random.default_rng(seed)

    def late(scale_ns: float) -> int:
        return round(random.uniform(0, scale_ns)) + (2_000_000 if random.random() < 0.02 else 0)

    ranks = tuple(
        tuple(Span(op, start, end + late((end - start) / 100)) for op, start, end in spans)
        for spans in timeline.ranks
    )
    sends = tuple(send._replace(arrive_ns=send.arrive_ns + late(20_000)) for send in timeline.sends)
    return Timeline(ranks=ranks, sends=sends, makespan_ns=timeline.makespan_ns)


def predict_and_run(problem: Problem, *, method: str) -> tuple[float, list[Timeline]]:
    """Plans by a profile and runs the plan by the truth: the error, and what the run has seen."""
    made = plan(problem, method=method)
    happened = simulate(TRUTH, made.schedule)
    error = abs(made.timeline.makespan_ns / happened.makespan_ns - 1)
    return error, [noisy(happened, seed) for seed in range(3)]


@pytest.mark.parametrize("method", ["1f1b", "zb-h1", "greedy"])
def test_the_second_prediction_is_closer(method: str) -> None:
    wrong = wrong_profile()
    first, seen = predict_and_run(wrong, method=method)
    better = corrected_links(corrected_stages(wrong, seen), seen)
    second, _ = predict_and_run(better, method=method)
    assert first > 0.05
    assert second < 0.02
    assert second < first / 5


def test_a_profile_that_was_right_stays() -> None:
    made = plan(TRUTH, method="zb-h1")
    seen = [made.timeline]
    again = corrected_links(corrected_stages(TRUTH, seen), seen)
    assert simulate(again, made.schedule).makespan_ns == made.timeline.makespan_ns


def run_with_gaps(problem: Problem, gap_ns: int) -> Timeline:
    """All ops of a single rank, each 1000 ns long, with a gap between any two."""
    ops = [span.op for span in plan(problem, method="zb-h1").timeline.ranks[0]]
    starts = [index * (1000 + gap_ns) for index in range(len(ops))]
    spans = [Span(op, start, start + 1000) for op, start in zip(ops, starts, strict=True)]
    return Timeline(ranks=(tuple(spans),), makespan_ns=spans[-1].end_ns)


def test_time_between_ops_is_overhead_and_does_not_grow_when_corrected_again() -> None:
    problem = make_problem([0], 2)
    seen = [run_with_gaps(problem, gap_ns=200)]
    once = corrected_stages(problem, seen)
    assert once.ranks[0].op_overhead_us == 0.2
    assert once.stages[0].forward_us == 1.0
    assert corrected_stages(once, seen) == once


def test_an_op_that_waits_for_its_message_says_nothing_of_the_overhead() -> None:
    made = plan(TRUTH, method="1f1b")  # full of bubbles
    assert {rank.op_overhead_us for rank in corrected_stages(TRUTH, [made.timeline]).ranks} == {0.0}


def test_a_fused_backward_is_shared_out_as_planned() -> None:
    problem = make_problem([0], 1, stage={"backward_input_us": 3, "backward_weight_us": 1})
    spans = plan(problem, method="1f1b").timeline.ranks[0]
    seen = Timeline(ranks=(tuple(Span(op, 2 * start, 2 * end) for op, start, end in spans),))
    stage = corrected_stages(problem, [seen]).stages[0]
    assert (stage.forward_us, stage.backward_input_us, stage.backward_weight_us) == (2, 6, 2)


def layer(forward_us: float) -> Layer:
    return Layer(forward_us=forward_us, backward_input_us=1, backward_weight_us=0)


def test_layers_add_up_to_the_stages_they_were_in() -> None:
    layers = [layer(1), layer(10), layer(10), layer(10), layer(3)]
    problem = make_problem([0, 1], 2).model_copy(update={"stages": (), "layers": tuple(layers)})
    placed = plan(problem, method="greedy", patterns=(Pattern.ONE_PER_RANK,)).problem
    stages = [
        stage.model_copy(update={"forward_us": 2 * stage.forward_us, "backward_weight_us": 4.0})
        for stage in placed.stages
    ]
    slower = placed.model_copy(update={"stages": tuple(stages)})
    corrected = corrected_layers(layers, placed, slower)
    assert [each.forward_us for each in corrected] == [2, 20, 20, 20, 6]
    for stage in slower.stages:
        assert stage.layers is not None
        own = corrected[slice(*stage.layers)]
        # Where the profile saw nothing, all layers get an equal part.
        assert sum(each.backward_weight_us for each in own) == pytest.approx(4)


def run_of(truth: Link, starts_us: Sequence[float]) -> Timeline:
    """Messages of 1000 bytes on a link, a little late, one of them by a lot."""
    random = np.random.default_rng(0)
    rate = truth.bandwidth_bytes_per_s
    occupancy_us = 1000e6 / rate if rate else 0.0
    free_us, sends = 0.0, []
    for microbatch, start_us in enumerate(starts_us):
        free_us = max(free_us, start_us) + occupancy_us
        late_us = random.exponential(2.0) + (5000 if microbatch == 7 else 0)
        start_ns = round(start_us * 1000)
        arrive_ns = round((free_us + truth.latency_us + late_us) * 1000)
        op = Op(0, Kind.SEND_F, microbatch)
        sends.append(Message(op, 0, 1, start_ns, start_ns, arrive_ns))
    return Timeline(ranks=((), ()), sends=tuple(sends))


def corrected_by(seen: Timeline, *guess: Link) -> tuple[Link, ...]:
    links = [link.model_dump() for link in guess]
    return corrected_links(make_problem([0, 1], len(seen.sends), links=links), [seen]).links


BURSTS = [burst * 20_000 + index for burst in range(5) for index in range(6)]
ALONE = [index * 20_000 for index in range(20)]
LINK = Link(src=0, dst=1, latency_us=2000, bandwidth_bytes_per_s=2e6)


@pytest.mark.parametrize("latency", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0])
def test_bursts_show_latency_and_rate(latency: float, rate: float) -> None:
    [found] = corrected_by(run_of(LINK, BURSTS), scaled(LINK, latency=latency, rate=rate))
    assert found.latency_us == pytest.approx(2000, abs=30)
    assert found.bandwidth_bytes_per_s == pytest.approx(2e6, rel=0.03)


def test_lone_messages_leave_the_rate_as_it_was_planned() -> None:
    [found] = corrected_by(run_of(LINK, ALONE), scaled(LINK, latency=2.0, rate=1.0))
    assert found.bandwidth_bytes_per_s == 2e6
    assert found.latency_us == pytest.approx(2000, abs=30)


def test_a_link_without_messages_stays_and_one_without_rate_has_a_latency() -> None:
    guess = Link(src=0, dst=1, latency_us=100, latency_samples_us=(90, 110))
    unused = Link(src=1, dst=0, latency_us=300)
    seen = run_of(Link(src=0, dst=1, latency_us=2000), BURSTS)
    there, back = corrected_by(seen, guess, unused)
    assert there.latency_us == pytest.approx(2000, abs=30)
    assert there.bandwidth_bytes_per_s is None
    assert there.latency_samples_us == pytest.approx((there.latency_us - 10, there.latency_us + 10))
    assert back == unused


def test_the_deviation_of_nothing_is_none() -> None:
    assert relative_deviation([0.0, 0.0]) == 0.0


def test_what_codecs_take_is_not_counted_with_the_stages_again() -> None:
    codec = {"kind": "int8", "encode_bytes_per_s": 1e9, "decode_bytes_per_s": 2e9}
    links = [{"src": src, "dst": 1 - src, "codec": codec} for src in (0, 1)]
    problem = make_problem((0, 1), 2, stage={"output_bytes": 4000}, links=links)
    for method in ("1f1b", "zb-h1"):
        timeline = plan(problem, method=method).timeline
        assert timeline.ranks[0][0].end_ns == 5000  # 1 us of F, 4 us of encoding
        assert corrected_stages(problem, [timeline]) == problem
