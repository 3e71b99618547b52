"""A bound from memory that the stages of a rank share.

Nothing is given back before the first I of a rank, so before the head of that I the rank can run
only as many F's as its memory holds, and it is idle once it is full. More generally, before the
k-th smallest head h of its I's, at most k - 1 of them have started: the F's started by then hold at
most the limit and what k - 1 microbatches gave back, and all other work comes after h.

The mirror image holds for the end of the step: time runs backwards, W opens a microbatch and F
closes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.relaxation import Times
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
    return _load(
        heads[:, Kind.I], work[:, Kind.F], work[:, Kind.I] + work[:, Kind.W], tails, work,
        taken, released, limit,
    )  # fmt: skip


def _behind(
    heads: Times, work: Times, tails: Times, taken: Times, released: Times, limit: int
) -> int:
    """Backwards in time, W (with its I) opens, F closes."""
    return _load(
        tails[:, Kind.F], work[:, Kind.W] + work[:, Kind.I], work[:, Kind.F], heads, work,
        taken, released, limit,
    )  # fmt: skip


def _load(
    closing_heads: Times,
    opening_work: Times,
    closing_work: Times,
    tails: Times,
    work: Times,
    taken: Times,
    released: Times,
    limit: int,
) -> int:
    """Largest of h + work that cannot be before h + rest, over h and rest."""
    ordered = np.sort(closing_heads.ravel())
    closed = np.arange(len(ordered), dtype=np.int64)
    capacity = limit + closed * int(released.max())
    early = _most_work(opening_work, taken, capacity, closing_heads.shape[1])
    early += closed * int(closing_work.max())
    all_work = np.broadcast_to(work[:, :, None], tails.shape)
    bound = 0
    for rest in np.unique(np.append(0, tails.min(axis=2)))[:_NUM_TAILS]:
        late = int(all_work[tails >= rest].sum()) - early
        if (late > 0).any():
            bound = max(bound, int((ordered + late)[late > 0].max()) + int(rest))
    return bound


def _most_work(work: Times, taken: Times, capacity: Times, num_microbatches: int) -> Times:
    """Most work of opening ops that fits each capacity (parts of an op count), rounded up."""
    by_value = sorted(
        zip(work.tolist(), taken.tolist(), strict=True),
        key=lambda pair: pair[0] / pair[1] if pair[1] else np.inf,
        reverse=True,
    )
    free = sum(each for each, num_bytes in by_value if not num_bytes) * num_microbatches
    paid = [(each, num_bytes) for each, num_bytes in by_value if num_bytes]
    num_bytes = np.cumsum([0] + [each * num_microbatches for _, each in paid])
    done = np.cumsum([0] + [each * num_microbatches for each, _ in paid])
    most: Times = np.ceil(np.interp(capacity, num_bytes, done)).astype(np.int64) + free
    return most
