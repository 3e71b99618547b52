"""A bound from memory that the stages of a rank share.

At each end of the step a rank is idle while its memory is full (`windows`). What it cannot do
within a time from the start, nor within one from the end, it does in between: so the idle times of
both ends add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.relaxation import Times
from crosspipe_ray.planners.bounds.windows import End, Opened, Reals, Windows
from crosspipe_ray.problem import Problem

_NUM_WINDOWS = 8  # of the other end, with which each window is tried


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
            total = int(work.sum()) * problem.num_microbatches
            bound = max(bound, _least(total, first.windows(), last.windows()))
    return bound


def _least(total: int, first: Windows, last: Windows) -> int:
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


def _ahead(heads: Times, work: Times, taken: Times, limit: int, away: int) -> End:
    """F opens, I (with its W) closes."""
    forward, since = work[:, Kind.F], heads[:, Kind.F].min(axis=1)
    late = np.cumsum(forward * (since >= since[:, None]), axis=1)
    opened = Opened(np.cumsum(taken), np.cumsum(forward), late, since)
    closing, pause = work[:, Kind.I] + work[:, Kind.W], int(forward[-1]) + away
    return End(heads, work, opened, Kind.I, closing, taken, limit, pause)


def _behind(tails: Times, work: Times, kept: Times, taken: Times, limit: int, away: int) -> End:
    """Backwards in time, W (with its I) opens, F closes."""
    since = tails[:, Kind.I].min(axis=1)
    ways = _ways_behind(kept / np.maximum(1, work[:, Kind.W]))
    has_input, has_weight = (np.array(has, dtype=np.int64) for has in zip(*ways, strict=True))
    inputs = has_input * work[:, Kind.I]
    done = inputs.sum(axis=1) + has_weight @ work[:, Kind.W]
    late = (since >= since[:, None]) @ inputs.T
    opened = Opened(has_weight @ kept, done, late, since)
    pause = int(work[-1, Kind.I]) + away
    return End(tails, work, opened, Kind.F, work[:, Kind.F], taken, limit, pause)


def _ways_behind(price: Reals) -> Iterator[tuple[list[bool], list[bool]]]:
    """For each way to open a microbatch backwards, of which stages I and W is open.

    An I of a later stage comes with those of the earlier ones, as they are still to come; a W may
    be left over by itself, the one of the least price (bytes for its time) first.
    """
    stages = range(len(price))
    for first in range(len(price) + 1):
        alone = [stage for stage in np.argsort(price, kind="stable") if stage >= first]
        for number in range(len(alone) + 1):
            inputs = [stage < first for stage in stages]
            yield inputs, [stage < first or stage in alone[:number] for stage in stages]
