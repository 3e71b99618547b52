"""What memory makes ops wait for, and how far back in microbatches ops must have run before others.

Both follow from the rooms of the ranks alone, not from any duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.problem import Problem


@dataclass(frozen=True, slots=True)
class Window:
    """F ``m`` of ``target`` waits for I ``m - input`` and W ``m - weight`` of ``source``."""

    source: int
    target: int
    input: int
    weight: int


def memory_windows(problem: Problem, costs: Sequence[StageCosts]) -> list[Window]:
    """What the memory of ranks makes F's wait for."""
    windows, never = [], problem.num_microbatches
    for rank, stages in enumerate(problem.stages_of_rank):
        limit = activation_limit_bytes(problem, rank)
        if limit is None:
            continue
        together = 0
        for position, target in enumerate(stages):
            together += costs[target].activation_bytes
            windows += [
                _window(problem, costs, source, target, limit - together)
                for source in stages[: position + 1]
            ]
        if len(stages) > 1 and together:
            room = max(1, limit // together)
            windows.append(Window(stages[-1], stages[-1], input=room, weight=never))
    return windows


def _window(
    problem: Problem, costs: Sequence[StageCosts], source: int, target: int, spare_bytes: int
) -> Window:
    """With one microbatch of each stage up to ``target`` held, this much more may be held."""
    whole = costs[source].activation_bytes
    kept = 0 if problem.is_fused(source) else whole - costs[source].freed_by_input_bytes
    never = problem.num_microbatches
    spare_bytes = max(0, spare_bytes)
    return Window(
        source,
        target,
        input=spare_bytes // whole + 1 if whole else never,
        weight=spare_bytes // kept + 1 if kept else never,
    )


class Precedence:
    """How far back in microbatches each op must have run before another.

    Rows lie on a line: F of stage 0 to F of the last, then I back to stage 0; W hangs off its I.
    What lies earlier on the line has run (shift 0). From later on it one comes back through a
    memory edge only; the first stage's lies on the way of all, so one such edge is enough.
    """

    def __init__(self, problem: Problem, windows: Sequence[Window]) -> None:
        self.never = problem.num_microbatches
        size = len(problem.stages)
        narrowest = np.full((size, size), self.never, dtype=np.int64)
        self._by_source: list[list[Window]] = [[] for _ in range(size)]
        for window in windows:
            at = window.source, window.target
            narrowest[at] = min(narrowest[at], window.input, window.weight)
            self._by_source[window.source].append(window)
        # [s, t]: by a window whose source is at most s and whose target is at most t
        self._back = np.minimum.accumulate(np.minimum.accumulate(narrowest, axis=0), axis=1)

    def shift(self, source: tuple[int, int], target: tuple[int, int]) -> int:
        """Least shift from (stage, kind) to (stage, kind); the number of microbatches: none."""
        if source == target:
            return 1
        stage, kind = source
        onto = (target[0], min(target[1], Kind.I))
        if kind != Kind.W:
            return 0 if source == onto else self._along(source, onto)
        ways = (
            window.weight + self._along((window.target, Kind.F), onto)
            for window in self._by_source[stage]
        )
        return min(ways, default=self.never)

    def _along(self, source: tuple[int, int], target: tuple[int, int]) -> int:
        if self._position(source) <= self._position(target):
            return 0
        last = len(self._back) - 1
        least_source = last if source[1] == Kind.F else source[0]
        least_target = target[0] if target[1] == Kind.F else last
        return int(self._back[least_source, least_target])

    def _position(self, row: tuple[int, int]) -> int:
        stage, kind = row
        return stage if kind == Kind.F else 2 * len(self._back) - 1 - stage
