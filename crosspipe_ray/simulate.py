"""The clock: what a schedule takes on a problem.

Discrete events under the cost model of CrossPipe (section 3).

A rank runs its ops in order, one at a time, each as soon as its input is there. When F (or I, B)
ends, its message occupies its channel for bytes/bandwidth, one at a time, and arrives latency
later. A channel serves messages in the order that the plan gives, or else by ready time, then
stage, kind, microbatch. Data-parallel gathers start at time 0 and gate a stage's first F;
reductions follow its last W or B.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crosspipe_ray import clock
from crosspipe_ray.columns import NO_INTS, Ints, Ops, PerRank, most_per_rank
from crosspipe_ray.compiled import Loop
from crosspipe_ray.costs import StageCosts, stage_costs
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.machines import Machines, is_in, jobs_of, machines_of
from crosspipe_ray.ops import MICROBATCH_BITS, Kind, Op, op_row, split_code
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule, check_num_ranks, peak_memory_bytes
from crosspipe_ray.sub_blocks import part_rows
from crosspipe_ray.timeline import Messages, Span, Spans, Timeline

_RUN = Loop(clock.run, allocates=True)
_PYTHON_S = 1e-6  # for a job


def simulate(
    problem: Problem, schedule: Schedule, *, send_order: Iterable[Op] | None = None
) -> Timeline:
    """Runs a schedule on the clock.

    Args:
        problem: with stages.
        schedule: ops per rank. A part of the ops (forwards only, say) is fine; `validate` asks for
            all.
        send_order: SEND ops in the order in which their channels serve them; default: by ready
            time.

    Raises:
        ScheduleError: the ops wait for each other in a cycle; names a rank and what it waits for.
            Or the problem has no such op.
    """
    check_num_ranks(problem, schedule)
    _check_known(problem, schedule.ranks.flat)
    costs = stage_costs(problem)
    gathers = _gathers(costs, schedule)
    gates_ns = {span.op.stage: span.end_ns for spans in gathers for span in spans}
    order = None if send_order is None else Ops.of(send_order)
    parts = part_rows(schedule.ranks.flat.codes, schedule.parts, op_row(len(costs), 0))
    machines = machines_of(
        costs, parts, problem.num_microbatches, gates_ns, has_send_order=order is not None
    )
    ops = PerRank(Ops(parts.codes), schedule.ranks.first)
    done = _run(machines, jobs_of(machines, ops, order))
    _check_done(schedule, done)
    return _timeline(costs, schedule, machines, done, gathers)


def _check_known(problem: Problem, ops: Ops) -> None:
    is_known = is_in(ops.codes, op_row(len(problem.stages), 0), problem.num_microbatches)
    if not is_known.all():
        raise ScheduleError(f"op {ops[int(np.argmin(is_known))]}: the problem has none such")


@dataclass(frozen=True, slots=True)
class _Done:
    """What the clock leaves behind.

    Attributes:
        jobs: of the ranks, then of the channels.
        starts: per job.
        position: per machine, the first job that was not done.
        ready: per slot, when the input was there.
    """

    jobs: PerRank[Ops]
    starts: Ints
    position: Ints
    ready: Ints


def _run(machines: Machines, jobs: PerRank[Ops]) -> _Done:
    """Runs the clock, as machine code where that pays."""
    codes, first = jobs.flat.codes, jobs.first
    has_queue = np.zeros(machines.num_machines, dtype=bool)
    has_queue[machines.rows.machine[machines.rows.is_queued != 0]] = True
    ready = np.full(machines.num_slots, clock.NOT_YET, dtype=np.int64)
    ready[: machines.num_microbatches] = 0
    changing: tuple[Ints, ...] = (
        codes,
        first[:-1].copy(),
        np.where(has_queue, first[:-1], first[1:]),
        ready,
        np.zeros(len(codes), dtype=np.int64),
    )
    machine_code = _RUN.machine_code(python_s=_PYTHON_S * len(codes))
    if machine_code:
        machine_code(machines.rows, *changing)
    else:
        lists = [column.tolist() for column in changing]
        clock.run(clock.Rows(*(column.tolist() for column in machines.rows)), *lists)
        changing = tuple(np.array(column, dtype=np.int64) for column in lists)
    codes, position, _, ready, starts = changing
    return _Done(PerRank(Ops(codes), first), starts, position, ready)


def _check_done(schedule: Schedule, done: _Done) -> None:
    num_ranks = len(schedule.ranks)
    stuck = np.flatnonzero(done.position[:num_ranks] < schedule.ranks.first[1:])
    if not len(stuck):
        return
    rank = int(stuck[0])
    position = int(done.position[rank] - schedule.ranks.first[rank])
    op = schedule.ranks[rank][position]
    source = (
        Op(op.stage - 1, Kind.F, op.microbatch)
        if op.kind is Kind.F
        else Op(op.stage + 1, Kind.I, op.microbatch)
    )
    raise ScheduleError(
        f"rank {rank}, op {op} (position {position}): deadlock, it waits for the message of "
        f"{source}, which never runs: ranks wait for each other in a cycle, or the op or its send "
        "is missing",
        schedule.grid(around=(rank, position)),
    )


def _gathers(costs: Sequence[StageCosts], schedule: Schedule) -> list[list[Span]]:
    """Gathers of each rank from time 0, in the order in which its stages need them."""
    if not any(cost.gather_ns for cost in costs):
        return [[] for _ in schedule.ranks]
    gathers = []
    for ops in schedule.ranks:
        held, first_use = np.unique(split_code(ops.codes)[0], return_index=True)
        spans: list[Span] = []
        for stage in held[np.argsort(first_use)].tolist():
            if costs[stage].gather_ns:
                start = spans[-1].end_ns if spans else 0
                end = start + costs[stage].gather_ns
                spans.append(Span(Op(stage, Kind.UNSHARD, None), start, end))
        gathers.append(spans)
    return gathers


def _reductions(costs: Sequence[StageCosts], spans: Spans, gathers: Sequence[Span]) -> list[Span]:
    """Reductions of one rank: each after its stage's last W or B, one at a time."""
    stages, kinds, _ = split_code(spans.ops.codes)
    ends_stage = (kinds == Kind.W) | (kinds == Kind.B)
    found, place = np.unique(stages[ends_stage][::-1], return_index=True)
    last_end = dict(
        zip(found.tolist(), spans.end_ns[ends_stage][::-1][place].tolist(), strict=True)
    )
    free = gathers[-1].end_ns if gathers else 0
    reductions = []
    for stage, ready in sorted(last_end.items(), key=lambda item: (item[1], item[0])):
        if costs[stage].reduce_ns:
            start = max(ready, free)
            free = start + costs[stage].reduce_ns
            reductions.append(Span(Op(stage, Kind.REDUCE_GRAD, None), start, free))
    return reductions


def _timeline(
    costs: Sequence[StageCosts],
    schedule: Schedule,
    machines: Machines,
    done: _Done,
    gathers: Sequence[Sequence[Span]],
) -> Timeline:
    first = schedule.ranks.first
    codes, starts = done.jobs.flat.codes[: first[-1]], done.starts[: first[-1]]
    spans = Spans(schedule.ranks.flat.codes, starts, machines.ends(codes, starts))
    ranks = PerRank(spans, first)
    collectives = _collectives(costs, ranks, gathers)
    ends = [spans[-1].end_ns for spans in collectives if spans]
    if len(spans):
        ends.append(int(spans.end_ns.max()))
    waits = _peak_message_bytes(machines, done, PerRank(Spans(codes, starts, starts), first))
    return Timeline(
        ranks=ranks,
        sends=_sends(machines, done),
        collectives=collectives,
        makespan_ns=max(ends, default=0),
        peak_memory_bytes=peak_memory_bytes(costs, schedule),
        peak_message_bytes=tuple(waits),
        parts=None if schedule.parts is None else PerRank(schedule.parts, first),
    )


def _collectives(
    costs: Sequence[StageCosts], ranks: PerRank[Spans], gathers: Sequence[Sequence[Span]]
) -> tuple[tuple[Span, ...], ...]:
    """Gathers and reductions of each rank; empty where no rank has any."""
    if not any(cost.reduce_ns or cost.gather_ns for cost in costs):
        return ()
    return tuple(
        (*gathered, *_reductions(costs, spans, gathered))
        for spans, gathered in zip(ranks, gathers, strict=True)
    )


def _sends(machines: Machines, done: _Done) -> Messages:
    """The messages that were sent, channel by channel."""
    begins, ends = done.jobs.first[:-1], done.position
    channels = range(machines.num_ranks, machines.num_machines)
    sent = [np.arange(begins[channel], ends[channel]) for channel in channels]
    which = np.concatenate([NO_INTS, *sent])
    codes, starts = done.jobs.flat.codes[which], done.starts[which]
    machine, _, _, _, lag, target, _ = machines.rows
    rows = codes >> MICROBATCH_BITS
    ends_ns = machines.ends(codes, starts)
    ranks = machine[op_row(split_code(codes)[0], Kind.F)], machine[target[rows]]
    return Messages(codes, *ranks, starts, ends_ns, ends_ns + lag[rows])


def _peak_message_bytes(machines: Machines, done: _Done, jobs: PerRank[Spans]) -> Iterator[int]:
    """Most bytes of inputs from other ranks that have arrived and wait for their op, per rank."""
    for which, block in jobs.blocks():
        spans = block.flat
        num_bytes = machines.input_bytes[spans.ops.codes >> MICROBATCH_BITS]
        waiting = np.flatnonzero(num_bytes)
        rank = np.repeat(np.arange(len(which)), np.diff(block.first))[waiting]
        arrivals = done.ready[machines.slots(spans.ops.codes[waiting])]
        times = np.concatenate([spans.start_ns[waiting], arrivals])
        # Rank by rank, and at equal times releases first. What is nearly sorted is soon sorted.
        later = np.concatenate([rank, rank]) * (times.max(initial=0) + 1)
        in_order = np.argsort(later + times, kind="stable")
        changes = np.concatenate([-num_bytes[waiting], num_bytes[waiting]])[in_order]
        first = np.searchsorted(rank, np.arange(len(which) + 1)) * 2
        # All that arrives is used, so a rank begins with nothing.
        yield from most_per_rank(np.cumsum(changes), first)
