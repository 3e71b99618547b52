"""What no schedule can beat: lower bounds on the makespan, and how far from the end each op is.

`relaxation` gives every op a head (earliest start) and a tail (least time from its end to the end
of the step). From them:

- an op alone needs head + duration + tail;
- a rank needs at least the optimum of its ops as one machine with heads and tails that may be
  preempted (Jackson's rule: always run the released op with the longest tail; optimal, Horn 1974);
- a channel is such a machine for its messages, whose tails begin with the latency;
- a rank is idle while its memory is full (`memory_bound`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from crosspipe_ray.costs import StageCosts, stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.memory_bound import memory_bound
from crosspipe_ray.planners.relaxation import (
    NUM_KINDS,
    Times,
    heads_of,
    least_durations,
    mirrored,
    relax,
)
from crosspipe_ray.problem import Problem

_MOST_EXACT = 300_000  # jobs, over all machines; above, heads and tails are tried in a coarse grid


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one problem, in nanoseconds.

    Attributes:
        makespan_ns: no schedule is shorter.
        heads: shape (stages, 3, microbatches): no F, I (or B), W starts earlier.
        tails: same shape: least time from an op's end to the end of the step.
    """

    makespan_ns: int
    heads: Times
    tails: Times


def bounds_of(problem: Problem, costs: Sequence[StageCosts] | None = None) -> Bounds:
    """All bounds of a problem with stages.

    Args:
        problem: with stages; that it fits its memory is not checked.
        costs: of the problem, if they are at hand.
    """
    costs = stage_costs(problem) if costs is None else costs
    if problem.max_sub_blocks > 1:  # parts take and give memory back in shares
        problem = _without_memory_limits(problem)
    relaxation = relax(problem, costs)
    shape = (len(costs), NUM_KINDS, problem.num_microbatches)
    heads = heads_of(relaxation).reshape(shape)
    tails = heads_of(mirrored(relaxation, costs))[:, ::-1].reshape(shape)
    durations = np.array([least_durations(problem, costs, stage) for stage in range(len(costs))])
    makespan = int((heads + durations[:, :, None] + tails).max())
    makespan = max(makespan, *_collective_loads(problem, costs))
    makespan = max(makespan, memory_bound(problem, costs, heads, durations, tails))
    machines = [
        *_rank_jobs(problem, heads, durations, tails),
        *_channel_jobs(costs, heads, durations, tails),
        *_reduce_jobs(problem, costs, heads + durations[:, :, None]),
    ]
    exact = sum(len(jobs[0]) for jobs in machines) <= _MOST_EXACT
    for jobs in machines:
        makespan = max(makespan, jackson_bound(*jobs) if exact else _coarse_bound(*jobs))
    return Bounds(makespan, heads, tails)


def _without_memory_limits(problem: Problem) -> Problem:
    ranks = [rank.model_copy(update={"memory_limit_bytes": None}) for rank in problem.ranks]
    return problem.model_copy(update={"ranks": tuple(ranks)})


def lower_bound_ns(problem: Problem) -> int:
    """No schedule of the problem is shorter than this, in nanoseconds."""
    return bounds_of(problem).makespan_ns


def tail_table_ns(
    problem: Problem, costs: Sequence[StageCosts], *, bounds: Bounds | None = None
) -> dict[Kind, list[list[int]]]:
    """Least time from the start of an op to the end of the step, by kind, stage and microbatch."""
    tails = (bounds or bounds_of(problem, costs)).tails
    durations = np.array([least_durations(problem, costs, stage) for stage in range(len(costs))])
    from_start = tails + durations[:, :, None]
    return {kind: from_start[:, kind].tolist() for kind in (Kind.F, Kind.I, Kind.W)}


def jackson_bound(heads: Times, durations: Times, tails: Times) -> int:
    """Optimum of one machine with heads and tails when jobs may be preempted.

    >>> jackson_bound(np.array([0, 1]), np.array([4, 1]), np.array([0, 6]))
    8
    """
    in_order = np.argsort(heads, kind="stable")
    jobs = zip(
        heads[in_order].tolist(),
        durations[in_order].tolist(),
        tails[in_order].tolist(),
        strict=True,
    )
    waiting: list[tuple[int, int]] = []  # (-tail, time left)
    now = bound = 0
    for head, duration, tail in jobs:
        while waiting and now < head:
            negative_tail, left = heappop(waiting)
            run = min(left, head - now)
            now += run
            if run < left:
                heappush(waiting, (negative_tail, left - run))
            else:
                bound = max(bound, now - negative_tail)
        now = max(now, head)
        if duration:
            heappush(waiting, (-tail, duration))
        else:
            bound = max(bound, head + tail)
    while waiting:
        negative_tail, left = heappop(waiting)
        now += left
        bound = max(bound, now - negative_tail)
    return bound


def _coarse_bound(heads: Times, durations: Times, tails: Times) -> int:
    """For some h and q: h + work of the jobs with heads from h and tails from q on + q."""
    bound = 0
    for share in (0.0, 0.001, 0.01, 0.1, 0.5):
        for tail_share in (0.0, 0.001, 0.01, 0.1, 0.5):
            head, tail = np.quantile(heads, share), np.quantile(tails, tail_share)
            chosen = (heads >= head) & (tails >= tail)
            if chosen.any():
                work = int(durations[chosen].sum())
                bound = max(bound, int(heads[chosen].min()) + work + int(tails[chosen].min()))
    return bound


def _rank_jobs(
    problem: Problem, heads: Times, durations: Times, tails: Times
) -> Iterator[tuple[Times, Times, Times]]:
    for stages in problem.stages_of_rank:
        chosen = list(stages)
        work = np.repeat(durations[chosen].ravel(), problem.num_microbatches)
        yield heads[chosen].ravel(), work, tails[chosen].ravel()


def _collective_loads(problem: Problem, costs: Sequence[StageCosts]) -> Iterator[int]:
    """Per rank, the work of its data-parallel channel."""
    for stages in problem.stages_of_rank:
        yield sum(costs[stage].gather_ns + costs[stage].reduce_ns for stage in stages)


def _reduce_jobs(
    problem: Problem, costs: Sequence[StageCosts], ends: Times
) -> Iterator[tuple[Times, Times, Times]]:
    """Per rank, its reductions: from the end of the last W on."""
    for stages in problem.stages_of_rank:
        work = np.array([costs[stage].reduce_ns for stage in stages])
        if work.any():
            yield ends[list(stages), Kind.W, -1], work, np.zeros_like(work)


def _channel_jobs(
    costs: Sequence[StageCosts], heads: Times, durations: Times, tails: Times
) -> Iterator[tuple[Times, Times, Times]]:
    users: dict[int, list[tuple[Times, Times, Times]]] = defaultdict(list)
    for stage, cost in enumerate(costs):
        for kind, receiver in ((Kind.F, stage + 1), (Kind.I, stage - 1)):
            transfer = cost.transfer(kind)
            if transfer and transfer.route and transfer.occupancy_ns:
                ready = heads[stage, kind] + durations[stage, kind]
                rest = tails[receiver, kind] + durations[receiver, kind] + transfer.route.latency_ns
                users[transfer.route.channel].append(
                    (ready, np.full(len(ready), transfer.occupancy_ns), rest)
                )
    for messages in users.values():
        ready, occupancy, rest = (np.concatenate(column) for column in zip(*messages, strict=True))
        yield ready, occupancy, rest
