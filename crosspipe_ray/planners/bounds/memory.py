"""A bound from memory that the stages of a rank share.

Nothing is given back before the first I of a rank, so before the head of that I the rank can run
only as many F's as its memory holds, and it is idle once it is full. More generally, before the
k-th smallest head h of its I's, at most k - 1 of them have started: the F's started by then hold at
most the limit and what k - 1 microbatches gave back, and all other work comes after h. As F of a
stage comes after F of the earlier ones, a rank cannot fill its memory with its longest F's alone.

The mirror image holds for the end of the step: time runs backwards, W opens a microbatch and F
closes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import Times
from crosspipe_ray.problem import Problem

_NUM_TAILS = 8  # for which the rest of the step is tried


def memory_bound(
    problem: Problem, costs: Sequence[StageCosts], heads: Times, durations: Times, tails: Times
) -> int:
    """The largest over all ranks that have a limit.

    Args:
        problem: with stages.
        costs: of the problem.
        heads: shape (stages, 3, microbatches).
        durations: shape (stages, 3).
        tails: as heads.
    """
    bound = 0
    for rank, stages in enumerate(problem.stages_of_rank):
        limit = activation_limit_bytes(problem, rank)
        if limit is not None:
            chosen = list(stages)
            taken = np.array([costs[stage].activation_bytes for stage in stages])
            kept = taken - [_freed_early(problem, costs, stage) for stage in stages]
            own = heads[chosen], durations[chosen], tails[chosen]
            bound = max(bound, _ahead(*own, taken, taken, limit), _behind(*own, kept, taken, limit))
    return bound


def _freed_early(problem: Problem, costs: Sequence[StageCosts], stage: int) -> int:
    cost = costs[stage]
    return cost.activation_bytes if problem.is_fused(stage) else cost.freed_by_input_bytes


def _ahead(
    heads: Times, work: Times, tails: Times, taken: Times, released: Times, limit: int
) -> int:
    """F opens, I (with its W) closes."""
    options = list(zip(np.cumsum(taken), np.cumsum(work[:, Kind.F]), strict=True))
    closing_work = work[:, Kind.I] + work[:, Kind.W]
    return _load(heads[:, Kind.I], options, closing_work, tails, work, released, limit)


def _behind(
    heads: Times, work: Times, tails: Times, taken: Times, released: Times, limit: int
) -> int:
    """Backwards in time, W (with its I) opens, F closes.

    An I of a later stage comes with those of the earlier ones, as they are still to come; a W may
    be left over by itself.
    """
    both = work[:, Kind.I] + work[:, Kind.W]
    options = []
    for first in range(len(work) + 1):
        num_bytes, done = int(taken[:first].sum()), int(both[:first].sum())
        options.append((num_bytes, done))
        for stage in sorted(range(first, len(work)), key=lambda s: taken[s] / max(1, work[s, 2])):
            num_bytes, done = num_bytes + int(taken[stage]), done + int(work[stage, Kind.W])
            options.append((num_bytes, done))
    return _load(tails[:, Kind.F], options, work[:, Kind.F], heads, work, released, limit)


def _load(
    closing_heads: Times,
    options: Sequence[tuple[int, int]],
    closing_work: Times,
    tails: Times,
    work: Times,
    released: Times,
    limit: int,
) -> int:
    """Largest of h + work that cannot be before h + rest, over h and rest.

    Options are what may have been opened of a microbatch: bytes that it holds, and work.
    """
    ordered = np.sort(closing_heads.ravel())
    closed = np.arange(len(ordered), dtype=np.int64)
    capacity = limit + closed * int(released.max())
    early = _most_work(options, capacity, closing_heads.shape[1])
    early += closed * int(closing_work.max())
    all_work = np.broadcast_to(work[:, :, None], tails.shape)
    bound = 0
    for rest in np.unique(np.append(0, tails.min(axis=2)))[:_NUM_TAILS]:
        late = int(all_work[tails >= rest].sum()) - early
        if (late > 0).any():
            bound = max(bound, int((ordered + late)[late > 0].max()) + int(rest))
    return bound


def _most_work(options: Sequence[tuple[int, int]], capacity: Times, num_microbatches: int) -> Times:
    """Most work of opening ops that fits each capacity, rounded up.

    Every microbatch takes one of the options, or nothing; their mean is at most on the upper convex
    hull.
    """
    hull = [(0, 0)]
    for num_bytes, done in sorted(options):
        point = int(num_bytes), int(done)
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], point):
            hull.pop()
        if point[0] > hull[-1][0]:
            hull.append(point)
        elif point[1] > hull[-1][1]:
            hull[-1] = point
    held, work = num_microbatches * np.array(hull, dtype=np.int64).T
    most: Times = np.ceil(np.interp(capacity, held, np.maximum.accumulate(work))).astype(np.int64)
    return most


def _is_below(point: tuple[int, int], before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether a point lies on or under the line between two others."""
    run, rise = after[0] - before[0], after[1] - before[1]
    return (point[1] - before[1]) * run <= (point[0] - before[0]) * rise
