"""A schedule: the order of compute ops on every rank, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from crosspipe_ray.columns import NO_INTS, Ints, Ops, Parts, PerRank, most_per_rank
from crosspipe_ray.costs import StageCosts
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, MICROBATCH_BITS, Kind, Op, op_row
from crosspipe_ray.problem import Problem
from crosspipe_ray.sub_blocks import part_rows


@dataclass(frozen=True, slots=True)
class Schedule:
    """Compute ops (F, I, W, B) of each rank, in order.

    Attributes:
        ranks: ops; one that is split stands once for each run of parts.
        parts: of all ops, rank after rank; None: all are whole.
    """

    ranks: PerRank[Ops]
    parts: Parts | None = None

    @classmethod
    def of(cls, ranks: Iterable[Iterable[Op]]) -> Schedule:
        """Makes a schedule of any iterables of whole ops."""
        codes = [Ops.of(ops).codes for ops in ranks]
        return cls.of_codes(np.concatenate([NO_INTS, *codes]), [len(held) for held in codes])

    @classmethod
    def of_codes(
        cls, codes: Ints, lengths: Sequence[int], *, parts: Parts | None = None
    ) -> Schedule:
        """Makes a schedule of columns, which it keeps.

        Args:
            codes: of the ops of all ranks, rank after rank (`ops.op_code`).
            lengths: ops of each rank.
            parts: one per code; default: whole ops. All parts together are the whole op.
        """
        ranks = PerRank.of_lengths(Ops(codes), lengths)
        return cls(ranks, None if parts is None else _without_trivial(parts))

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
                f"[{op}]" if first + i == marked else f"{op}"
                for i, op in enumerate(ops[first : first + width])
            ]
            left, right = [".."] * (first > 0), [".."] * (len(ops) > first + width)
            lines.append(f"rank {rank}: {' '.join([*left, *cells, *right])}")
        return "\n".join(lines)


def check_num_ranks(problem: Problem, schedule: Schedule) -> None:
    """Refuses a schedule for another number of ranks.

    Raises:
        ScheduleError: says both numbers.
    """
    if len(schedule.ranks) != len(problem.ranks):
        raise ScheduleError(
            f"the schedule has {len(schedule.ranks)} ranks, the problem {len(problem.ranks)}"
        )


def peak_memory_bytes(costs: Sequence[StageCosts], schedule: Schedule) -> tuple[int, ...]:
    """Most activation bytes that each rank holds when it runs its ops in order."""
    peaks = (most_per_rank(held, first) for _, first, held in held_at_start(costs, schedule))
    return tuple(chain.from_iterable(peaks))


def held_at_start(
    costs: Sequence[StageCosts], schedule: Schedule
) -> Iterator[tuple[range, Ints, Ints]]:
    """Activation bytes held while each op runs: ranks, where each begins, and bytes."""
    num_rows = op_row(len(costs), 0)
    taken, released = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
    for stage, cost in enumerate(costs):
        taken[op_row(stage, Kind.F)] = cost.activation_bytes
        for kind in COMPUTE_KINDS:
            released[op_row(stage, kind)] = cost.released_bytes(kind)
    parts = part_rows(schedule.ranks.flat.codes, schedule.parts, num_rows)
    taken, released = parts.share(taken), parts.share(released)
    for ranks, block in PerRank(Ops(parts.codes), schedule.ranks.first).blocks():
        rows = block.flat.codes >> MICROBATCH_BITS
        held = np.cumsum(taken[rows] - released[rows])
        before = np.concatenate([[0], held])[block.first[:-1]]
        held += released[rows] - np.repeat(before, np.diff(block.first))
        yield ranks, block.first, held


def _without_trivial(parts: Parts) -> Parts | None:
    first, end, num_parts = parts.columns
    is_whole = (first == 0) & (end == num_parts) & (num_parts > 0)
    if is_whole.all():
        return None
    return Parts(first, np.where(is_whole, 1, end), np.where(is_whole, 1, num_parts))
