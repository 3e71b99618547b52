"""One B in place of an I and its W: it pays the fixed cost of an op once.

Searches run I and W, which leaves room between them for what another rank waits for. Where little
is gained by that, B takes less time, though its gradient leaves only when W is done too. Which of
them gain is tried: many at once, and where that is no shorter, either half of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosspipe_ray.columns import Ints
from crosspipe_ray.costs import StageCosts
from crosspipe_ray.ops import MICROBATCH_BITS, Kind, split_code
from crosspipe_ray.planners.bounds.relaxation import saved_by_merging_ns
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule

_LEAST_GAIN = 5e-4  # of the makespan; for less, no gradient is to leave later


def merged(
    problem: Problem, costs: Sequence[StageCosts], order: Order, *, time_limit_s: float
) -> Order:
    """An order with B's that is shorter by what is worth it, or the order itself.

    Args:
        problem: with stages.
        costs: of the problem.
        order: a valid one.
        time_limit_s: nothing more is tried after it.
    """
    deadline = time.monotonic() + time_limit_s
    inputs, weights = _pairs(order.schedule, np.flatnonzero(saved_by_merging_ns(problem, costs)))
    is_behind = weights == inputs + 1
    every = np.arange(len(inputs))
    untried = [each for each in (every[~is_behind], every[is_behind]) if len(each)]
    if not untried:
        return order
    known_ns = order.timeline(problem).makespan_ns
    best, best_ns, chosen = order, known_ns, every[:0]
    while untried and time.monotonic() < deadline:
        some = untried.pop()
        both = np.union1d(chosen, some)
        schedule = _with_merged(order.schedule, inputs[both], weights[both])
        trial = replace(order, schedule=schedule)
        is_valid = _sums_in_order(schedule)
        trial_ns = trial.timeline(problem).makespan_ns if is_valid else best_ns
        if trial_ns < best_ns:
            best, best_ns, chosen = trial, trial_ns, both
        elif len(some) > 1:
            untried += np.array_split(some, 2)
    return best if best_ns <= (1 - _LEAST_GAIN) * known_ns else order


def _sums_in_order(schedule: Schedule) -> bool:
    """Whether each stage sums its gradients in the order of microbatches: to the same bits."""
    stage, kind, microbatch = split_code(schedule.ranks.flat.codes)
    adds = np.flatnonzero((kind == Kind.W) | (kind == Kind.B))
    adds = adds[np.argsort(stage[adds], kind="stable")]
    is_next = (np.diff(microbatch[adds]) > 0) | (np.diff(stage[adds]) > 0)
    return bool(is_next.all())


def _pairs(schedule: Schedule, stages: Ints) -> tuple[Ints, Ints]:
    """Places of I's and of their W's, on ranks laid end to end."""
    codes = schedule.ranks.flat.codes
    stage, kind, _ = split_code(codes)
    inputs = np.flatnonzero((kind == Kind.I) & np.isin(stage, stages))
    if schedule.parts is not None:
        inputs = inputs[:0]
    by_code = np.argsort(codes)
    its_weight = codes[inputs] + (Kind.W - Kind.I << MICROBATCH_BITS)
    return inputs, by_code[np.searchsorted(codes, its_weight, sorter=by_code)]


def _with_merged(schedule: Schedule, inputs: Ints, weights: Ints) -> Schedule:
    codes = schedule.ranks.flat.codes.copy()
    codes[inputs] += Kind.B - Kind.I << MICROBATCH_BITS
    ranks = np.searchsorted(schedule.ranks.first, inputs, side="right") - 1
    lengths = np.diff(schedule.ranks.first) - np.bincount(ranks, minlength=len(schedule.ranks))
    return Schedule.of_codes(np.delete(codes, weights), lengths.tolist())
