"""A bound from memory that the stages of a rank share.

Nothing is given back before the first I of a rank, so before the head of that I the rank can run
only as many F's as its memory holds, and it is idle once it is full. More generally, before the
k-th smallest head h of its I's, at most k - 1 of them have started: the F's started by then hold at
most the limit and what k - 1 microbatches gave back, and all other work comes after h. As F of a
stage comes after F of the earlier ones, a rank cannot fill its memory with its longest F's alone.

The mirror image holds for the end of the step: time runs backwards, W opens a microbatch and F
closes it. What a rank cannot do within a time from the start, nor within one from the end, it does
in between: so the idle times of both ends add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import Times
from crosspipe_ray.problem import Problem

_NUM_WINDOWS = 8  # of the other end, with which each window is tried


class _Windows(NamedTuple):
    """Times from one end of the step, and the most work that a rank can do within each."""

    lengths: Times
    most: Times

    def most_idle(self, number: int) -> _Windows:
        """The windows in which the rank is idle the longest."""
        chosen = np.argsort(self.most - self.lengths, kind="stable")[:number]
        return _Windows(self.lengths[chosen], self.most[chosen])


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
    bound, away = 0, _away_ns(costs, durations)
    for rank, stages in enumerate(problem.stages_of_rank):
        limit = activation_limit_bytes(problem, rank)
        if limit is not None:
            chosen = list(stages)
            taken = np.array([costs[stage].activation_bytes for stage in stages])
            kept = taken - [_freed_early(problem, costs, stage) for stage in stages]
            work, last_away = durations[chosen], away[chosen[-1]]
            first = _ahead(heads[chosen], work, taken, limit, last_away)
            last = _behind(tails[chosen], work, kept, taken, limit, last_away)
            bound = max(bound, _least(int(work.sum()) * problem.num_microbatches, first, last))
    return bound


def _least(total: int, first: _Windows, last: _Windows) -> int:
    """Least time for all work of a rank, by a window at each end.

    What cannot be done within either is done between them: they do not overlap.
    """
    bound = 0
    for one, other in ((first, last), (last, first)):
        few = other.most_idle(_NUM_WINDOWS)
        between = total - one.most[:, None] - few.most
        lengths = one.lengths[:, None] + few.lengths
        bound = max(bound, int((between + lengths)[between > 0].max(initial=0)))
    return bound


def _freed_early(problem: Problem, costs: Sequence[StageCosts], stage: int) -> int:
    cost = costs[stage]
    return cost.activation_bytes if problem.is_fused(stage) else cost.freed_by_input_bytes


def _away_ns(costs: Sequence[StageCosts], durations: Times) -> list[int]:
    """Least time from the end of F of each stage to its I: on the way through all later ones."""
    away = [0]
    for after, here in pairwise(reversed(range(len(costs)))):
        time = away[-1] + int(durations[after, Kind.F] + durations[after, Kind.I])
        for transfer in (costs[here].output, costs[after].gradient):
            if transfer and transfer.route:
                time += transfer.occupancy_ns + transfer.route.latency_ns
        away.append(time)
    return away[::-1]


def _ahead(heads: Times, work: Times, taken: Times, limit: int, away: int) -> _Windows:
    """F opens, I (with its W) closes."""
    options = list(zip(np.cumsum(taken), np.cumsum(work[:, Kind.F]), strict=True))
    closing_work = work[:, Kind.I] + work[:, Kind.W]
    pause = int(work[-1, Kind.F]) + away
    return _joined(
        _full(heads[:, Kind.I], options, closing_work, taken, limit),
        _full_again(heads[:, Kind.I], pause, options, closing_work, taken, limit),
        _waiting(heads, work),
    )


def _behind(
    tails: Times, work: Times, kept: Times, taken: Times, limit: int, away: int
) -> _Windows:
    """Backwards in time, W (with its I) opens, F closes.

    An I of a later stage comes with those of the earlier ones, as they are still to come; a W may
    be left over by itself.
    """
    both = work[:, Kind.I] + work[:, Kind.W]
    options = []
    for first in range(len(work) + 1):
        num_bytes, done = int(kept[:first].sum()), int(both[:first].sum())
        options.append((num_bytes, done))
        for stage in sorted(range(first, len(work)), key=lambda s: kept[s] / max(1, work[s, 2])):
            num_bytes, done = num_bytes + int(kept[stage]), done + int(work[stage, Kind.W])
            options.append((num_bytes, done))
    pause = int(work[-1, Kind.I]) + away
    return _joined(
        _full(tails[:, Kind.F], options, work[:, Kind.F], taken, limit),
        _full_again(tails[:, Kind.F], pause, options, work[:, Kind.F], taken, limit),
        _waiting(tails, work),
    )


def _full(
    closing_heads: Times,
    options: Sequence[tuple[int, int]],
    closing_work: Times,
    released: Times,
    limit: int,
) -> _Windows:
    """Windows until something closes, in which memory is full.

    Options are what may have been opened of a microbatch: bytes that it holds, and work.
    """
    ordered = np.sort(closing_heads.ravel())
    closed = np.arange(len(ordered), dtype=np.int64)
    capacity = limit + closed * int(released.max())
    early = _most_work(options, capacity, closing_heads.shape[1])
    return _Windows(ordered, early + closed * int(closing_work.max()))


def _full_again(
    closing_heads: Times,
    pause: int,
    options: Sequence[tuple[int, int]],
    closing_work: Times,
    released: Times,
    limit: int,
) -> _Windows:
    """The window until something closes that was not wholly open when the first thing closed.

    A microbatch closes a pause after it is wholly open (the last option). If n are so by the first
    closing head, no more than these close within the window; they have taken memory from what
    would have filled the time until then.
    """
    first, num_microbatches = int(closing_heads.min()), closing_heads.shape[1]
    num_bytes, done = options[-1]
    most_open = min(num_microbatches, limit // num_bytes) if num_bytes else num_microbatches
    opened = np.arange(most_open + 1, dtype=np.int64)
    others = _most_work(options[:-1], limit - opened * num_bytes, num_microbatches)
    until_first = opened * done + others
    capacity = limit + opened * int(released.sum())
    in_all = opened * int(closing_work.sum()) + _most_work(options, capacity, num_microbatches)
    most = np.minimum(in_all, until_first + pause).max()
    return _Windows(np.array([first + pause]), np.array([most]))


def _waiting(heads: Times, work: Times) -> _Windows:
    """Windows until a row of ops may start; none of an op whose head is not within it is done."""
    lengths = np.unique(np.append(0, heads.min(axis=2)))[:_NUM_WINDOWS]
    all_work = np.broadcast_to(work[:, :, None], heads.shape)
    most = [int(all_work[heads < length].sum()) for length in lengths]
    return _Windows(lengths, np.array(most, dtype=np.int64))


def _joined(*windows: _Windows) -> _Windows:
    return _Windows(*(np.concatenate(columns) for columns in zip(*windows, strict=True)))


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
