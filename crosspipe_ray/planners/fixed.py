"""The well-known schedules, each as loops over counts. They know nothing of times or links.

With p ranks and M microbatches; r is a rank. Where F = I = W = 1 and links cost nothing:

    method       stages per rank  makespan         most microbatches in flight on rank r
    gpipe        1                3 (M + p - 1)    M
    1f1b         1                3 (M + p - 1)    p - r
    interleaved  v, in a loop     3 (v M + p - 1)  (v + 1) p - 2 r - 1, each of 1/v the size
    zb-h1        1                3 M + p - 1      p
    zb-h2        1                3 M + p - 1      2 p - 1
    zb-v         2, in a wave     6 M + p - 1      2 p, each of half the size
    dualpipe-v   2, in a wave     6 M + p - 1      2 p + 1, each of half the size

This holds for M >= 2 p, and never more than v M are in flight; interleaved and zb-v count in
units of their own, smaller stages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crosspipe_ray.columns import Ints
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.ops import Kind, Op, op_code
from crosspipe_ray.planners.placement import Pattern, follows
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule


def gpipe(problem: Problem) -> Schedule:
    """All forwards, then all backwards (Huang et al., 2019)."""
    _require(problem, "gpipe", Pattern.ONE_PER_RANK)
    return _in_rounds(problem, lambda _: ((Kind.F, -problem.num_microbatches), (Kind.B, 0)))


def one_forward_one_backward(problem: Problem) -> Schedule:
    """Forwards until the first gradient is back, then one for every backward (PipeDream-flush)."""
    _require(problem, "1f1b", Pattern.ONE_PER_RANK)
    last = len(problem.stages) - 1
    return _in_rounds(problem, lambda stage: ((Kind.F, stage - last), (Kind.B, 0)))


def zb_h1(problem: Problem) -> Schedule:
    """1F1B with split backward and its memory (Qi et al., 2024).

    Rank s puts off s W's to fill its cooldown: it runs F^(p-s), (I F)^s, (I W F)*, (I W)*, and the
    W's that are left. Optimal at zero delay and equal times with memory for p microbatches.
    """
    _require(problem, "zb-h1", Pattern.ONE_PER_RANK)
    p = len(problem.stages)
    return _in_rounds(problem, lambda s: ((Kind.I, 0), (Kind.W, s), (Kind.F, s - p)))


def zb_h2(problem: Problem) -> Schedule:
    """No rank is idle between its first and last op, for twice the memory (Qi et al., 2024).

    Rank s runs F^(2(p-s)-1), (I F)^2s, (I W F)*, (I W)*, and the W's that are left.
    """
    _require(problem, "zb-h2", Pattern.ONE_PER_RANK)
    p = len(problem.stages)
    return _in_rounds(problem, lambda s: ((Kind.I, 0), (Kind.W, 2 * s), (Kind.F, 2 * (s - p) + 1)))


def interleaved(problem: Problem) -> Schedule:
    """Megatron-LM's interleaved 1F1B (Narayanan et al., 2021).

    Rounds of p microbatches go through the v stages of every rank.

    Raises:
        ProblemError: the stages are no loop, or the microbatches no multiple of the ranks.
    """
    _require(problem, "interleaved", Pattern.LOOP)
    num_ranks, num_microbatches = len(problem.ranks), problem.num_microbatches
    if num_microbatches % num_ranks:
        raise ProblemError(
            f"num_microbatches: interleaved needs a multiple of the {num_ranks} ranks, "
            f"got {num_microbatches}"
        )
    return Schedule.of(_interleaved_rank(problem, stages[0]) for stages in problem.stages_of_rank)


def _interleaved_rank(problem: Problem, position: int) -> list[Op]:
    num_ranks = len(problem.ranks)
    num_chunks = len(problem.stages) // num_ranks
    forwards = _rounds(problem, position, Kind.F, range(num_chunks))
    backwards = _rounds(problem, position, Kind.B, range(num_chunks - 1, -1, -1))
    num_warmup = min(2 * (num_ranks - position - 1) + (num_chunks - 1) * num_ranks, len(forwards))
    pairs = zip(forwards[num_warmup:], backwards, strict=False)
    num_paired = len(forwards) - num_warmup
    return forwards[:num_warmup] + [op for pair in pairs for op in pair] + backwards[num_paired:]


def zb_v(problem: Problem) -> Schedule:
    """The zero-bubble V schedule (Qi et al., 2024): two stages per rank in a wave, memory of 1F1B.

    With fewer than 2 p - 1 microbatches it is the schedule of that many, less the ops that are too
    many.
    """
    _require(problem, "zb-v", Pattern.WAVE)
    return Schedule.of(_zb_v_rank(problem, stages[0]) for stages in problem.stages_of_rank)


def _zb_v_rank(problem: Problem, position: int) -> Iterator[Op]:
    num_ranks = len(problem.ranks)
    down, up = position, 2 * num_ranks - 1 - position
    num_full = max(2 * num_ranks - 1, problem.num_microbatches)
    count = _Counter(num_full, num_kept=problem.num_microbatches)
    for _ in range(2 * (num_ranks - position) - 1):
        yield from count.next(down, Kind.F)
    for _ in range(position):
        yield from count.next(up, Kind.F)
        yield from count.next(down, Kind.F)
    for _ in range(num_ranks - position):
        yield from count.each(up, Kind.F, Kind.I, Kind.W)
    while count.done(up, Kind.F) < num_full:
        yield from count.each(down, Kind.F, Kind.I, Kind.W)
        yield from count.each(up, Kind.F, Kind.I, Kind.W)
    for _ in range(position):
        yield from count.next(down, Kind.I)
        yield from count.next(up, Kind.I)
    for _ in range(num_ranks - position):
        yield from count.each(down, Kind.I, Kind.W)
    for stage in (up, down):
        while count.done(stage, Kind.W) < num_full:
            yield from count.next(stage, Kind.W)


def dualpipe_v(problem: Problem) -> Schedule:
    """DualPipe cut in half (DeepSeek; Sea AI Lab, 2025): a wave whose pairs overlap F with B.

    A rank runs one op at a time here, so a pair is F, then B. With fewer than 2 p microbatches it
    is the schedule of that many, less the ops that are too many.
    """
    _require(problem, "dualpipe-v", Pattern.WAVE)
    return Schedule.of(_dualpipe_v_rank(problem, stages[0]) for stages in problem.stages_of_rank)


def _dualpipe_v_rank(problem: Problem, position: int) -> Iterator[Op]:
    num_ranks = len(problem.ranks)
    down, up = position, 2 * num_ranks - 1 - position
    num_full = max(2 * num_ranks, problem.num_microbatches)
    count = _Counter(num_full, num_kept=problem.num_microbatches)
    before, after = num_ranks - position - 1, position + 1  # ranks towards the turn, and the others
    for _ in range(2 * before):
        yield from count.next(down, Kind.F)
    for _ in range(after):
        yield from count.next(down, Kind.F)
        yield from count.next(up, Kind.F)
    for _ in range(before):
        yield from count.backward(up, is_split=True)
        yield from count.put_off_weight()
        yield from count.next(up, Kind.F)
    for _ in range(num_full - 2 * num_ranks + after):
        yield from count.next(down, Kind.F)
        yield from count.backward(up)
        yield from count.next(up, Kind.F)
        yield from count.backward(down)
    for _ in range(before):
        yield from count.backward(up)
        yield from count.next(up, Kind.F)
        yield from count.backward(down)
    half, odd = divmod(after, 2)
    for i in range(after):
        yield from count.backward(up, is_split=i >= half + odd)
        yield from count.backward(down, is_split=i >= half)
    for _ in range(before):
        yield from count.put_off_weight()
        yield from count.backward(down, is_split=True)
    for _ in range(after):
        yield from count.put_off_weight()


def forward_only(problem: Problem) -> Schedule:
    """Every microbatch through all stages, oldest first, on any placement: an evaluation."""
    return Schedule.of(
        [
            Op(stage, Kind.F, microbatch)
            for microbatch in range(problem.num_microbatches)
            for stage in stages
        ]
        for stages in problem.stages_of_rank
    )


def one_by_one(problem: Problem) -> Schedule:
    """One microbatch after the other, on any placement: the least memory, and a long step.

    No rank holds more than one microbatch, and only one message is on its way or waits.
    """
    microbatches = np.arange(problem.num_microbatches)[:, None]
    codes = [
        (np.array([op_code(*row, 0) for row in _rows(problem, stages)]) + microbatches).ravel()
        for stages in problem.stages_of_rank
    ]
    return Schedule.of_codes(np.concatenate(codes), [len(ops) for ops in codes])


def _rows(problem: Problem, stages: Sequence[int]) -> Iterator[tuple[int, Kind]]:
    """What a rank does for one microbatch: W's last, as no other rank waits for them."""
    yield from ((stage, Kind.F) for stage in stages)
    for stage in reversed(stages):
        yield stage, Kind.B if problem.is_fused(stage) else Kind.I
    yield from ((stage, Kind.W) for stage in stages if not problem.is_fused(stage))


class _Counter:
    """Yields the next op of a stage and kind; nothing once all microbatches are done."""

    def __init__(self, num_microbatches: int, *, num_kept: int | None = None) -> None:
        self._num_microbatches = num_microbatches
        self._num_kept = num_microbatches if num_kept is None else num_kept
        self._done: dict[tuple[int, Kind], int] = {}
        self._weights: deque[Op] = deque()

    def done(self, stage: int, kind: Kind) -> int:
        return self._done.get((stage, kind), 0)

    def next(self, stage: int, kind: Kind) -> Iterator[Op]:
        microbatch = self.done(stage, kind)
        if microbatch < self._num_microbatches:
            self._done[stage, kind] = microbatch + 1
            if microbatch < self._num_kept:
                yield Op(stage, kind, microbatch)

    def backward(self, stage: int, *, is_split: bool = False) -> Iterator[Op]:
        """B; or I, with its W put off."""
        microbatch = self.done(stage, Kind.B)
        self._done[stage, Kind.B] = microbatch + 1
        if is_split:
            self._weights.append(Op(stage, Kind.W, microbatch))
        if microbatch < self._num_kept:
            yield Op(stage, Kind.I if is_split else Kind.B, microbatch)

    def put_off_weight(self) -> Iterator[Op]:
        """The oldest W that was put off."""
        weight = self._weights.popleft()
        if weight.microbatch is not None and weight.microbatch < self._num_kept:
            yield weight

    def each(self, stage: int, *kinds: Kind) -> Iterator[Op]:
        for kind in kinds:
            yield from self.next(stage, kind)


def _rounds(problem: Problem, position: int, kind: Kind, chunks: range) -> list[Op]:
    """Ops of one kind on one rank: rounds of p microbatches, all chunks in each round."""
    num_ranks = len(problem.ranks)
    return [
        Op(chunk * num_ranks + position, kind, microbatch)
        for first in range(0, problem.num_microbatches, num_ranks)
        for chunk in chunks
        for microbatch in range(first, first + num_ranks)
    ]


def _in_rounds(problem: Problem, lags: Callable[[int], Sequence[tuple[Kind, int]]]) -> Schedule:
    """A schedule of one stage per rank, on whatever rank each stage is.

    Args:
        problem: with one stage per rank.
        lags: of a stage, its kinds in the order in which a round has them, and for each the round
            of microbatch 0; every round has the next microbatch. Rounds begin before 0.
    """
    microbatches = np.arange(problem.num_microbatches)
    codes: list[Ints] = []
    for (stage,) in problem.stages_of_rank:
        kinds = lags(stage)
        rounds = np.concatenate([microbatches + lag for _, lag in kinds])
        ops = np.concatenate([op_code(stage, kind, 0) + microbatches for kind, _ in kinds])
        codes.append(ops[np.argsort(rounds, kind="stable")])
    return Schedule.of_codes(np.concatenate(codes), [len(ops) for ops in codes])


def _require(problem: Problem, method: str, pattern: Pattern) -> None:
    if not follows(problem, pattern):
        raise ProblemError(
            f"stages: {method} needs the placement '{pattern.value}' ({pattern.meaning}); "
            f"make one with `crosspipe problem --placement {pattern.value}`, or give layers"
        )
    if method.startswith("zb-") or method == "dualpipe-v":
        fused = [stage for stage in range(len(problem.stages)) if problem.is_fused(stage)]
        if fused:
            raise ProblemError(
                f"stages.{fused[0]}.fused_backward: {method} needs a backward split in I and W"
            )
