"""What no schedule can beat: lower bounds on the makespan, and how far from the end each op is.

`relaxation` gives every op a head (earliest start) and a tail (least time from its end to the end
of the step). From them:

- an op alone needs head + duration + tail;
- a rank needs at least the optimum of its ops as one machine with heads and tails that may be
  preempted (Jackson's rule: always run the released op with the longest tail; optimal, Horn 1974);
- a channel is such a machine for its messages, whose tails begin with the latency;
- a rank is idle while its memory is full (`memory`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crosspipe_ray.compiled import Loop, as_arrays, as_lists
from crosspipe_ray.costs import StageCosts, stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds import sweeps
from crosspipe_ray.planners.bounds.memory import memory_bound
from crosspipe_ray.planners.bounds.relaxation import (
    NUM_KINDS,
    Times,
    heads_of,
    least_durations,
    mirrored,
    relax,
)
from crosspipe_ray.planners.bounds.sweeps import Jobs, machine_bound
from crosspipe_ray.problem import Problem

_JACKSON = Loop(sweeps.machine_bound, sweeps.most_urgent, sweeps.next_head)
_PYTHON_S = 5e-6  # for a job


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
    ]
    makespan = max(makespan, *map(jackson_bound, machines))
    makespan = max(makespan, *_reduced(problem, costs, heads + durations[:, :, None]))
    return Bounds(makespan, heads, tails)


def _without_memory_limits(problem: Problem) -> Problem:
    ranks = [rank.model_copy(update={"memory_limit_bytes": None}) for rank in problem.ranks]
    return problem.model_copy(update={"ranks": tuple(ranks)})


def lower_bound_ns(problem: Problem) -> int:
    """No schedule of the problem is shorter than this, in nanoseconds."""
    return bounds_of(problem).makespan_ns


def tails_from_start(problem: Problem, costs: Sequence[StageCosts], bounds: Bounds) -> Times:
    """Least time from the start of an op to the end of the step, by row of the kernel."""
    durations = np.array([least_durations(problem, costs, stage) for stage in range(len(costs))])
    from_start: Times = (bounds.tails + durations[:, :, None]).reshape(durations.size, -1)
    return from_start


def jackson_bound(jobs: Jobs) -> int:
    """Optimum of one machine with heads and tails when its jobs may be preempted.

    >>> jackson_bound(Jobs([0, 1, 2], [4, 1], [0, 1], [0, 6]))
    8
    """
    done = np.zeros(len(jobs.durations), dtype=np.int64)
    machine_code = _JACKSON.machine_code(python_s=_PYTHON_S * len(jobs.heads))
    if machine_code:
        jobs = as_arrays(jobs)
        return int(machine_code(jobs, done, np.array(jobs.durations)))
    jobs = as_lists(jobs)
    return machine_bound(jobs, done.tolist(), list(jobs.durations))


def _rank_jobs(problem: Problem, heads: Times, durations: Times, tails: Times) -> Iterator[Jobs]:
    for stages in problem.stages_of_rank:
        chosen = list(stages)
        yield _jobs(durations[chosen].ravel(), heads[chosen], tails[chosen])


def _jobs(durations: Times, heads: Times, tails: Times) -> Jobs:
    """Of one machine; heads and tails have a row of each duration."""
    first = np.linspace(0, heads.size, len(durations) + 1, dtype=np.int64)
    return Jobs(first, durations, heads.ravel(), tails.ravel())


def _collective_loads(problem: Problem, costs: Sequence[StageCosts]) -> Iterator[int]:
    """Per rank, the work of its data-parallel channel."""
    for stages in problem.stages_of_rank:
        yield sum(costs[stage].gather_ns + costs[stage].reduce_ns for stage in stages)


def _reduced(problem: Problem, costs: Sequence[StageCosts], ends: Times) -> Iterator[int]:
    """Per rank, when its reductions can be done: one at a time, from the last W of the stage on."""
    for stages in problem.stages_of_rank:
        done = 0
        for end, stage in sorted((int(ends[stage, Kind.W, -1]), stage) for stage in stages):
            if costs[stage].reduce_ns:
                done = max(done, end) + costs[stage].reduce_ns
        yield done


def _channel_jobs(
    costs: Sequence[StageCosts], heads: Times, durations: Times, tails: Times
) -> Iterator[Jobs]:
    """Per channel, its messages: a row for each stage and direction."""
    users: dict[int, list[tuple[int, Times, Times]]] = defaultdict(list)
    for stage, cost in enumerate(costs):
        for kind, receiver in ((Kind.F, stage + 1), (Kind.I, stage - 1)):
            transfer = cost.transfer(kind)
            if transfer and transfer.route and transfer.occupancy_ns:
                ready = heads[stage, kind] + durations[stage, kind]
                rest = tails[receiver, kind] + durations[receiver, kind] + transfer.route.latency_ns
                users[transfer.route.channel].append((transfer.occupancy_ns, ready, rest))
    for messages in users.values():
        occupancy, ready, rest = zip(*messages, strict=True)
        yield _jobs(np.array(occupancy), np.array(ready), np.array(rest))
