"""What a run has shown stages and layers to cost: what the next plan starts from.

The spans are those of a run that is over; no plan is corrected by the run that it predicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import COMPUTE_KINDS, Kind, Op, receive_for, receive_of
from crosspipe_ray.problem import Layer, Problem, Stage
from crosspipe_ray.timeline import Timeline

OpTimes = dict[tuple[int, Kind], list[float]]

_FIELDS = {
    Kind.F: "forward_us",
    Kind.I: "backward_input_us",
    Kind.W: "backward_weight_us",
}


def op_times_us(timelines: Sequence[Timeline]) -> OpTimes:
    """What every op of each stage and kind took, in microseconds; in parts, all of them."""
    times_us: OpTimes = {}
    for timeline in timelines:
        took_ns: Counter[Op] = Counter()
        for spans in timeline.ranks:
            for op, start_ns, end_ns in spans:
                took_ns[op] += end_ns - start_ns
        for op, op_ns in took_ns.items():
            times_us.setdefault((op.stage, op.kind), []).append(op_ns / 1000)
    return times_us


def relative_deviation(values: Sequence[float]) -> float:
    """Median absolute deviation over the median: half of the values are nearer than that.

    >>> relative_deviation([9.0, 10.0, 10.0, 11.0, 500.0])
    0.1
    """
    middle = median(values)
    return median(abs(value - middle) for value in values) / middle if middle else 0.0


def corrected_stages(problem: Problem, timelines: Sequence[Timeline]) -> Problem:
    """The problem with the median times of its ops.

    What passes between two ops that wait for nothing counts with the second one. It is the least
    that a rank's `op_overhead_us` comes to; whatever else an op takes beyond its planned duration
    is the stage's.

    Args:
        problem: with stages; the plan of the run was made for it.
        timelines: measured, of steps of the run.
    """
    between_us = [_between_ops_us(timelines, rank) for rank in range(len(problem.ranks))]
    ranks = tuple(
        rank.model_copy(update={"op_overhead_us": max(rank.op_overhead_us, least_us)})
        for rank, least_us in zip(problem.ranks, between_us, strict=True)
    )
    times_us, costs = op_times_us(timelines), stage_costs(problem)
    stages = []
    for index, stage in enumerate(problem.stages):
        before, after = problem.ranks[stage.rank], ranks[stage.rank]
        besides_us = between_us[stage.rank] + before.op_overhead_us - after.op_overhead_us
        more_us = {
            kind: median(times_us[index, kind]) - duration_ns / 1000 + besides_us
            for kind, duration_ns in zip(COMPUTE_KINDS, costs[index].duration_ns, strict=True)
            if (index, kind) in times_us
        }
        stages.append(_corrected_stage(stage, more_us))
    return problem.model_copy(update={"ranks": ranks, "stages": tuple(stages)})


def corrected_layers(
    layers: Sequence[Layer], planned: Problem, corrected: Problem
) -> tuple[Layer, ...]:
    """Layers that add up to corrected stages; within a stage, all change by the same factor.

    Args:
        layers: of the whole model.
        planned: with stages that were made of them.
        corrected: the same by `corrected_stages`.
    """
    result = list(layers)
    for before, after in zip(planned.stages, corrected.stages, strict=True):
        assert before.layers is not None, "made of layers"
        first, end = before.layers
        for field in _FIELDS.values():
            old_us, new_us = getattr(before, field), getattr(after, field)
            for index in range(first, end):
                own_us = getattr(result[index], field)
                share_us = own_us * new_us / old_us if old_us else new_us / (end - first)
                result[index] = result[index].model_copy(update={field: share_us})
    return tuple(result)


def _corrected_stage(stage: Stage, more_us: dict[Kind, float]) -> Stage:
    """The stage with longer or shorter ops; that of B is shared out as its parts were planned."""
    if Kind.B in more_us:
        both_us = stage.backward_input_us + stage.backward_weight_us
        part = stage.backward_input_us / both_us if both_us else 0.5
        more_us = more_us | {Kind.I: more_us[Kind.B] * part, Kind.W: more_us[Kind.B] * (1 - part)}
    update = {
        field: max(0.0, getattr(stage, field) + more_us[kind])
        for kind, field in _FIELDS.items()
        if kind in more_us
    }
    return stage.model_copy(update=update)


def _between_ops_us(timelines: Sequence[Timeline], rank: int) -> float:
    """Median time from the end of an op to the start of the next one, where that was ready."""
    gaps_ns = [gap for timeline in timelines for gap in _gaps_ns(timeline, rank)]
    return median(gaps_ns) / 1000 if gaps_ns else 0.0


def _gaps_ns(timeline: Timeline, rank: int) -> Iterator[int]:
    arrived_ns = {receive_of(message.op): message.arrive_ns for message in timeline.sends}
    for before, after in pairwise(timeline.ranks[rank]):
        receive = receive_for(after.op)
        if receive is None or arrived_ns.get(receive, before.end_ns) <= before.end_ns:
            yield after.start_ns - before.end_ns
