"""A schedule: the order of compute ops on every rank, and the rules that make an order valid."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crosspipe_ray.columns import NO_INTS, Ints, Ops, PerRank
from crosspipe_ray.costs import StageCosts, activation_limit_bytes, stage_costs
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, Kind, Op, parse_op
from crosspipe_ray.problem import Problem

_BACKWARD = (Kind.I, Kind.B)
_IN_ORDER = "ops of one stage and kind run in microbatch order"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Compute ops (F, I, W, B) of each rank, in order."""

    ranks: PerRank[Ops]

    @classmethod
    def of(cls, ranks: Iterable[Iterable[Op]]) -> Schedule:
        """Makes a schedule of any iterables."""
        codes = [Ops.of(ops).codes for ops in ranks]
        return cls.of_codes(np.concatenate([NO_INTS, *codes]), [len(held) for held in codes])

    @classmethod
    def of_codes(cls, codes: Ints, lengths: Sequence[int]) -> Schedule:
        """Makes a schedule of columns, which it keeps.

        Args:
            codes: of the ops of all ranks, rank after rank (`ops.op_code`).
            lengths: ops of each rank.
        """
        return cls(PerRank.of_lengths(Ops(codes), lengths))

    def grid(self, *, around: tuple[int, int] | None = None, width: int = 12) -> str:
        """The ops as text, one line per rank.

        Args:
            around: (rank, position) to centre on and mark; default: from the start.
            width: ops per line.
        """
        first = max(0, around[1] - width // 2) if around else 0
        lines = []
        for rank, ops in enumerate(self.ranks):
            marked = around[1] if around and around[0] == rank else -1
            cells = [
                f"[{op}]" if i == marked else f"{op}"
                for i, op in enumerate(ops)
                if first <= i < first + width
            ]
            left, right = [".."] * (first > 0), [".."] * (len(ops) > first + width)
            lines.append(f"rank {rank}: {' '.join([*left, *cells, *right])}")
        return "\n".join(lines)


def validate(problem: Problem, schedule: Schedule) -> None:
    """Checks a schedule against the rules of the language, all but the absence of cycles.

    Every microbatch of every stage has one F and either one B or one I and one W, on the stage's
    rank; F comes before its backward, I before its W; per stage and kind, ops run in microbatch
    order (I and B count as one kind); a fused stage runs B; the memory limit holds. `simulate`
    finds cycles.

    Raises:
        ScheduleError: names rank, op and rule, and carries the grid.
    """
    if len(schedule.ranks) != len(problem.ranks):
        raise ScheduleError(
            f"the schedule has {len(schedule.ranks)} ranks, the problem {len(problem.ranks)}"
        )
    for rank, ops in enumerate(schedule.ranks):
        _RankRules(problem, schedule, rank).check(ops)
    _check_memory(problem, schedule)


def peak_memory_bytes(costs: Sequence[StageCosts], schedule: Schedule) -> tuple[int, ...]:
    """Most activation bytes that each rank holds when it runs its ops in order."""
    return tuple(max(held, default=0) for held in _held_at_start(costs, schedule))


def read_csv(path: Path) -> Schedule:
    """Reads a compute-only schedule as torch.distributed.pipelining writes it.

    A row per rank, an op per cell.

    Raises:
        ScheduleError: names the file and the cell.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ScheduleError(f"{path}: not CSV: {error}") from None
    return Schedule.of(
        [_parse_cell(path, row, column, cell) for column, cell in enumerate(cells) if cell.strip()]
        for row, cells in enumerate(rows)
    )


def to_csv(schedule: Schedule) -> str:
    """The schedule as a compute-only CSV that torch.distributed.pipelining's runtime loads."""
    return "".join(",".join(map(str, ops)) + "\n" for ops in schedule.ranks)


def _parse_cell(path: Path, row: int, column: int, cell: str) -> Op:
    try:
        op = parse_op(cell)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: rank {row}, cell {column}: {error}") from None
    if op.kind not in COMPUTE_KINDS:
        raise ScheduleError(
            f"{path}: rank {row}, cell {column}: '{op}' is no compute op (F, I, W or B)"
        )
    return op


class _RankRules:
    """The rules for one rank, checked op by op in order."""

    def __init__(self, problem: Problem, schedule: Schedule, rank: int) -> None:
        self._problem = problem
        self._schedule = schedule
        self._rank = rank
        self._stages = problem.stages_of_rank[rank]
        # Ops done per (stage, kind); as microbatches run in order, also the next microbatch.
        self._done = {(stage, kind): 0 for stage in self._stages for kind in COMPUTE_KINDS}
        # Microbatches whose I has run, per stage.
        self._split: dict[int, list[int]] = {stage: [] for stage in self._stages}

    def check(self, ops: Sequence[Op]) -> None:
        for position, op in enumerate(ops):
            rule = self._broken_rule(op)
            if rule:
                grid = self._schedule.grid(around=(self._rank, position))
                raise ScheduleError(
                    f"rank {self._rank}, op {op} (position {position}): {rule}", grid
                )
            self._done[op.stage, op.kind] += 1
            if op.kind is Kind.I and op.microbatch is not None:
                self._split[op.stage].append(op.microbatch)
        self._check_complete()

    def _broken_rule(self, op: Op) -> str | None:
        stage, kind, microbatch = op
        if kind not in COMPUTE_KINDS or microbatch is None:
            return "a schedule holds compute ops only (F, I, W, B)"
        if stage not in self._stages:
            return f"stage {stage} is not on this rank, which has {_listed(self._stages)}"
        if microbatch >= self._problem.num_microbatches:
            return f"there are {self._problem.num_microbatches} microbatches, counted from 0"
        return self._broken_kind_rule(stage, kind) or self._broken_order(stage, kind, microbatch)

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


def _check_memory(problem: Problem, schedule: Schedule) -> None:
    for rank, history in enumerate(_held_at_start(stage_costs(problem), schedule)):
        limit = activation_limit_bytes(problem, rank)
        position = next(
            (i for i, held in enumerate(history) if limit is not None and held > limit), None
        )
        if limit is not None and position is not None:
            op, held = schedule.ranks[rank][position], history[position]
            raise ScheduleError(
                f"rank {rank}, op {op} (position {position}): holds {held} activation bytes, "
                f"{held - limit} more than the {limit} that memory_limit_bytes leaves",
                schedule.grid(around=(rank, position)),
            )


def _held_at_start(costs: Sequence[StageCosts], schedule: Schedule) -> list[list[int]]:
    """Activation bytes held while each op runs, per rank."""
    changes = [[_change(cost, kind) for kind in COMPUTE_KINDS] for cost in costs]
    histories = []
    for ops in schedule.ranks:
        held, history = 0, []
        for stage, kind, _ in ops:
            taken, released = changes[stage][kind]
            held += taken
            history.append(held)
            held -= released
        histories.append(history)
    return histories


def _change(cost: StageCosts, kind: Kind) -> tuple[int, int]:
    return (cost.activation_bytes if kind is Kind.F else 0), cost.released_bytes(kind)


def _listed(stages: Sequence[int]) -> str:
    return f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"
