"""The rules of the schedule language: `validate` finds the op that breaks one.

All ops are checked at once, as arrays; only where a rule is broken are they gone through one by
one, to name the op and the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.costs import activation_limit_bytes, stage_costs
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, WHOLE, Kind, Op, Part, split_code
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule, check_num_ranks, held_at_start

_NOWHERE = -1
_NO_LIMIT = np.iinfo(np.int64).max
_BACKWARD = (Kind.I, Kind.B)
_IN_ORDER = "ops of one stage and kind run in microbatch order"


def validate(problem: Problem, schedule: Schedule) -> None:
    """Checks a schedule against the rules of the language, all but the absence of cycles.

    Every microbatch of every stage has one F and either one B or one I and one W, on the stage's
    rank; F comes before its backward, I before its W; per stage and kind, ops run in microbatch
    order (I and B count as one kind); the parts of a split op run in order, and it is done when
    the last one is; a fused stage runs B; the memory limit holds. `simulate` finds cycles.

    Raises:
        ScheduleError: names rank, op and rule, and carries the grid.
    """
    check_num_ranks(problem, schedule)
    if schedule.parts is not None or not _keeps_the_rules(problem, schedule):
        for rank in range(len(schedule.ranks)):
            _RankRules(problem, schedule, rank).check()
    _check_memory(problem, schedule)


def _keeps_the_rules(problem: Problem, schedule: Schedule) -> bool:
    """Whether no rule is broken, for all ops at once; `_RankRules` says which one is."""
    num_stages, num_microbatches = len(problem.stages), problem.num_microbatches
    rank_of_stage = np.array(problem.rank_of_stage)
    # Where each op stands, by stage, kind and microbatch.
    position = np.full((num_stages, len(COMPUTE_KINDS), num_microbatches), _NOWHERE, dtype=np.int32)
    for ranks, block in schedule.ranks.blocks():
        stages, kinds, microbatches = split_code(block.flat.codes)
        is_op = (kinds < len(COMPUTE_KINDS)) & (microbatches < num_microbatches)
        if not np.all(is_op & (stages < num_stages)):
            return False
        if not np.array_equal(rank_of_stage[stages], np.repeat(ranks, np.diff(block.first))):
            return False
        begin = schedule.ranks.first[ranks.start]
        position[stages, kinds, microbatches] = np.arange(begin, begin + len(stages))
    num_ops = np.count_nonzero(position != _NOWHERE)
    return num_ops == len(schedule.ranks.flat) and _is_complete_and_ordered(problem, position)


def _is_complete_and_ordered(problem: Problem, position: NDArray[np.int32]) -> bool:
    forward, backward_input, backward_weight, fused = position.transpose(1, 0, 2)
    is_fused = fused != _NOWHERE
    is_whole = np.array([problem.is_fused(stage) for stage in range(len(problem.stages))])
    backward = np.maximum(backward_input, fused)
    return bool(
        np.all(forward != _NOWHERE)
        and np.array_equal(backward_input == _NOWHERE, is_fused)
        and np.array_equal(backward_weight == _NOWHERE, is_fused)
        and np.all(is_fused[is_whole])
        and np.all(forward < backward)
        and np.all(is_fused | (backward_input < backward_weight))
        and all(_is_increasing(each) for each in (forward, backward, backward_weight))
    )


def _is_increasing(position: NDArray[np.int32]) -> bool:
    """Whether what there is of each stage stands in the order of microbatches."""
    latest = np.maximum.accumulate(position, axis=1)[:, :-1]
    later = position[:, 1:]
    return bool(np.all((later > latest) | (later == _NOWHERE)))


def _check_memory(problem: Problem, schedule: Schedule) -> None:
    limits = [activation_limit_bytes(problem, rank) for rank in range(len(problem.ranks))]
    if all(limit is None for limit in limits):
        return
    for ranks, first, held in held_at_start(stage_costs(problem), schedule):
        most = np.array([_NO_LIMIT if limits[rank] is None else limits[rank] for rank in ranks])
        over = np.flatnonzero(held > np.repeat(most, np.diff(first)))
        if len(over):
            index = int(np.searchsorted(first, over[0], side="right")) - 1
            rank, position = ranks[index], int(over[0] - first[index])
            raise ScheduleError(
                f"rank {rank}, op {schedule.ranks[rank][position]} (position {position}): holds "
                f"{held[over[0]]} activation bytes, {held[over[0]] - most[index]} more than the "
                f"{most[index]} that memory_limit_bytes leaves",
                schedule.grid(around=(rank, position)),
            )


class _RankRules:
    """The rules for one rank, checked op by op in order."""

    def __init__(self, problem: Problem, schedule: Schedule, rank: int) -> None:
        self._problem = problem
        self._schedule = schedule
        self._rank = rank
        self._stages = problem.stages_of_rank[rank]
        # Ops done per (stage, kind); as microbatches run in order, also the next microbatch.
        self._done = {(stage, kind): 0 for stage in self._stages for kind in COMPUTE_KINDS}
        # The latest part of each op.
        self._parts: dict[Op, Part] = {}
        # Microbatches whose I has run, per stage.
        self._split: dict[int, list[int]] = {stage: [] for stage in self._stages}

    def check(self) -> None:
        for position, (op, part) in enumerate(self._entries()):
            rule = self._broken_rule(op, part)
            if rule:
                grid = self._schedule.grid(around=(self._rank, position))
                raise ScheduleError(
                    f"rank {self._rank}, op {op} (position {position}): {rule}", grid
                )
            self._parts[op] = part
            if part.end == part.num_parts:
                self._done[op.stage, op.kind] += 1
                if op.kind is Kind.I and op.microbatch is not None:
                    self._split[op.stage].append(op.microbatch)
        self._check_complete()

    def _entries(self) -> Iterator[tuple[Op, Part]]:
        ranks, parts = self._schedule.ranks, self._schedule.parts
        if parts is None:
            return zip(ranks[self._rank], repeat(WHOLE), strict=False)
        first, end = ranks.first[self._rank : self._rank + 2]
        return zip(ranks[self._rank], parts[first:end], strict=True)

    def _broken_rule(self, op: Op, part: Part) -> str | None:
        stage, kind, microbatch = op
        if kind not in COMPUTE_KINDS or microbatch is None:
            return "a schedule holds compute ops only (F, I, W, B)"
        if stage not in self._stages:
            return f"stage {stage} is not on this rank, which has {_listed(self._stages)}"
        if microbatch >= self._problem.num_microbatches:
            return f"there are {self._problem.num_microbatches} microbatches, counted from 0"
        return (
            self._broken_kind_rule(stage, kind)
            or self._broken_order(stage, kind, microbatch)
            or self._broken_part(op, part)
        )

    def _broken_part(self, op: Op, part: Part) -> str | None:
        most = self._problem.max_sub_blocks
        if not 0 <= part.first < part.end <= part.num_parts <= most:
            return f"{part} is no part; max_sub_blocks is {most}"
        before = self._parts.get(op, Part(0, 0, part.num_parts))
        if (part.first, part.num_parts) != (before.end, before.num_parts):
            return f"parts run in order; part {before.end} of {before.num_parts} comes next"
        return None

    def _broken_kind_rule(self, stage: int, kind: Kind) -> str | None:
        if self._problem.is_fused(stage) and kind in (Kind.I, Kind.W):
            return f"stage {stage} has a fused backward and runs B in place of I and W"
        return None

    def _broken_order(self, stage: int, kind: Kind, microbatch: int) -> str | None:
        if kind is Kind.W:
            return self._broken_weight_order(stage, microbatch)
        expected = sum(
            self._done[stage, like] for like in (_BACKWARD if kind in _BACKWARD else (kind,))
        )
        if microbatch < expected:
            return "this op, or the other form of its backward, has run before"
        if microbatch > expected:
            return f"{_IN_ORDER}; {Op(stage, kind, expected)} comes first"
        if kind in _BACKWARD and self._done[stage, Kind.F] <= microbatch:
            return (
                f"backward comes after forward; {stage}F{microbatch} is not before it on this rank"
            )
        return None

    def _broken_weight_order(self, stage: int, microbatch: int) -> str | None:
        done, split = self._done[stage, Kind.W], self._split[stage]
        if done < len(split) and microbatch == split[done]:
            return None
        if microbatch in split[:done]:
            return "this op has run before"
        if microbatch not in split[done:]:
            return f"W comes after its I; {stage}I{microbatch} is not before it on this rank"
        return f"{_IN_ORDER}; {Op(stage, Kind.W, split[done])} comes first"

    def _check_complete(self) -> None:
        for stage in self._stages:
            done = {kind: self._done[stage, kind] for kind in COMPUTE_KINDS}
            missing = self._missing(stage, done)
            if missing:
                raise ScheduleError(
                    f"rank {self._rank}: op {missing} is missing",
                    self._schedule.grid(around=(self._rank, 0)),
                )

    def _missing(self, stage: int, done: dict[Kind, int]) -> Op | None:
        whole = self._problem.num_microbatches
        if done[Kind.F] < whole:
            return Op(stage, Kind.F, done[Kind.F])
        backward = done[Kind.I] + done[Kind.B]
        if backward < whole:
            return Op(stage, Kind.B if self._problem.is_fused(stage) else Kind.I, backward)
        split = self._split[stage]
        return Op(stage, Kind.W, split[done[Kind.W]]) if done[Kind.W] < len(split) else None


def _listed(stages: Sequence[int]) -> str:
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"
