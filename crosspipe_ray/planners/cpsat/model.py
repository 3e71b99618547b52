"""A problem as a model for CP-SAT, as in section 4.1 of CrossPipe.

Every compute op and every message that occupies a channel is an interval with a start. Ranks and
channels hold one interval at a time, data and microbatch order are precedences, and heads and tails
(`bounds.relaxation`) bound every start. Memory is precedences where a rank has one stage that gives
all back at once, and a cumulative resource otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.makespan import Bounds
from crosspipe_ray.planners.bounds.relaxation import split_durations
from crosspipe_ray.planners.cpsat.rows import Start
from crosspipe_ray.problem import Problem

Key = tuple[int, Kind, int]  # stage, F I or W (I stands for B too), microbatch
_KINDS = (Kind.F, Kind.I, Kind.W)


class Model:
    """Intervals and constraints, in units of the greatest common divisor of all times.

    Args:
        problem: with stages.
        costs: of the problem.
        bounds: of the problem.
        limit_ns: no schedule is asked for that is longer.
        is_relaxed: without the cumulative resources, which take most of the solver's time; what
            cannot be done then cannot be done at all.

    Attributes:
        model: for the solver.
        unit_ns: all times are multiples of it.
        starts: variable of each op.
        messages: the same of messages that occupy a channel.
    """

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        limit_ns: int,
        *,
        is_relaxed: bool = False,
    ) -> None:
        from ortools.sat.python import cp_model

        self._problem = problem
        self._costs = costs
        self._bounds = bounds
        self._is_relaxed = is_relaxed
        self.unit_ns = unit_of(problem, costs)
        self._limit = limit_ns // self.unit_ns
        self.model = cp_model.CpModel()
        self.starts: dict[Key, Any] = {}
        self.messages: dict[Key, Any] = {}
        self._ops()
        self._data()
        self._memory()
        self._reductions()

    def minimize(self) -> None:
        """Asks for the shortest makespan in place of any within the limit."""
        lowest = min(self._limit, self._bounds.makespan_ns // self.unit_ns)
        makespan = self.model.new_int_var(lowest, self._limit, "makespan")
        for key, start in self.starts.items():
            tail = int(self._bounds.tails[key]) // self.unit_ns
            self.model.add(makespan >= start + self.duration(key) + tail)
        self.model.minimize(makespan)

    def duration(self, key: Key) -> int:
        """Of an op, in units."""
        return split_durations(self._problem, self._costs, key[0])[key[1]] // self.unit_ns

    def _ops(self) -> None:
        on_rank: list[list[Any]] = [[] for _ in self._problem.ranks]
        for stage, cost in enumerate(self._costs):
            for kind in _KINDS:
                for m in range(self._problem.num_microbatches):
                    self.starts[stage, kind, m] = self._start((stage, kind, m))
                    if self.duration((stage, kind, m)):
                        on_rank[cost.rank].append(self._interval((stage, kind, m)))
        for intervals in on_rank:
            self.model.add_no_overlap(intervals)

    def _start(self, key: Key) -> Any:
        stage, kind, m = key
        head = -(-int(self._bounds.heads[stage, kind, m]) // self.unit_ns)
        tail = -(-int(self._bounds.tails[stage, kind, m]) // self.unit_ns)
        duration = self.duration(key)
        latest = self._limit - tail - duration
        return Start.within(self.model, head, latest).variable

    def _interval(self, key: Key) -> Any:
        return self.model.new_fixed_size_interval_var(
            self.starts[key], self.duration(key), f"{key[0]}{key[1].name}{key[2]}_on_rank"
        )

    def _end(self, key: Key) -> Any:
        return self.starts[key] + self.duration(key)

    def _data(self) -> None:
        on_channel: dict[int, list[Any]] = {}
        for stage, kind, m in self.starts:
            if m:
                self.model.add(self.starts[stage, kind, m] >= self._end((stage, kind, m - 1)))
            if kind is not Kind.F:
                self.model.add(self.starts[stage, kind, m] >= self._end((stage, Kind(kind - 1), m)))
            receiver = stage + 1 if kind is Kind.F else stage - 1
            if kind is not Kind.W and 0 <= receiver < len(self._costs):
                self._message((stage, kind, m), (receiver, kind, m), on_channel)
        for intervals in on_channel.values():
            self.model.add_no_overlap(intervals)

    def _message(self, source: Key, target: Key, on_channel: dict[int, list[Any]]) -> None:
        transfer = self._costs[source[0]].transfer(source[1])
        route = transfer.route if transfer else None
        latency = route.latency_ns // self.unit_ns if route else 0
        if transfer is None or route is None or not transfer.occupancy_ns:
            self.model.add(self.starts[target] >= self._end(source) + latency)
            return
        occupancy = transfer.occupancy_ns // self.unit_ns
        name = f"{source[0]}{transfer.kind.name}{source[2]}"
        start = self.model.new_int_var(0, self._limit, name)
        self.messages[source] = start
        self.model.add(start >= self._end(source))
        self.model.add(self.starts[target] >= start + occupancy + latency)
        if source[2]:
            self.model.add(start >= self.messages[source[0], source[1], source[2] - 1] + occupancy)
        interval = self.model.new_fixed_size_interval_var(start, occupancy, f"{name}_on_channel")
        on_channel.setdefault(route.channel, []).append(interval)

    def _memory(self) -> None:
        for rank, stages in enumerate(self._problem.stages_of_rank):
            limit = activation_limit_bytes(self._problem, rank)
            if limit is None:
                continue
            for stage in stages:
                self._window(stage, limit)
            if _needs_cumulative(self._problem, self._costs, stages) and not self._is_relaxed:
                self._cumulative(stages, limit)

    def _reductions(self) -> None:
        """One at a time on a rank's data-parallel channel, after its gathers."""
        for stages in self._problem.stages_of_rank:
            costs = [self._costs[stage] for stage in stages]
            gathered = sum(cost.gather_ns for cost in costs) // self.unit_ns
            reductions = []
            for stage, cost in zip(stages, costs, strict=True):
                if cost.reduce_ns:
                    size = cost.reduce_ns // self.unit_ns
                    start = self.model.new_int_var(gathered, max(gathered, self._limit - size), "")
                    last = (stage, Kind.W, self._problem.num_microbatches - 1)
                    self.model.add(start >= self._end(last))
                    self.model.add(start + size <= self._limit)
                    reductions.append(self.model.new_fixed_size_interval_var(start, size, ""))
            self.model.add_no_overlap(reductions)

    def _window(self, stage: int, limit: int) -> None:
        """With room for L, F of m comes after W (or B) of m - L; exact if I frees nothing."""
        freed, kept = _released(self._problem, self._costs, stage)
        if not kept:
            return
        window = (limit - freed - kept) // kept + 1
        for m in range(window, self._problem.num_microbatches):
            self.model.add(self.starts[stage, Kind.F, m] >= self._end((stage, Kind.W, m - window)))

    def _cumulative(self, stages: Sequence[int], limit: int) -> None:
        intervals, demands = [], []
        for stage in stages:
            for kind, num_bytes in zip(
                (Kind.I, Kind.W), _released(self._problem, self._costs, stage), strict=True
            ):
                for m in range(self._problem.num_microbatches if num_bytes else 0):
                    intervals.append(self._held((stage, kind, m)))
                    demands.append(num_bytes)
        self.model.add_cumulative(intervals, demands, limit)

    def _held(self, release: Key) -> Any:
        """From the start of F to the end of the op that gives the memory back."""
        stage, kind, m = release
        size = self.model.new_int_var(0, self._limit, "")
        start = self.starts[stage, Kind.F, m]
        return self.model.new_interval_var(
            start, size, self._end(release), f"{stage}{kind.name}{m}_held"
        )


def has_cumulative(problem: Problem, costs: Sequence[StageCosts]) -> bool:
    """Whether the memory of any rank is more than precedences."""
    return any(
        stages and _needs_cumulative(problem, costs, stages) for stages in problem.stages_of_rank
    )


def _needs_cumulative(problem: Problem, costs: Sequence[StageCosts], stages: Sequence[int]) -> bool:
    """Whether the memory of a rank with these stages is more than precedences."""
    return len(stages) > 1 or _released(problem, costs, stages[0])[0] > 0


def _released(problem: Problem, costs: Sequence[StageCosts], stage: int) -> tuple[int, int]:
    """Bytes that go back with I and with W (the end of B, where it is fused)."""
    freed = 0 if problem.is_fused(stage) else costs[stage].freed_by_input_bytes
    return freed, costs[stage].activation_bytes - freed


def unit_of(problem: Problem, costs: Sequence[StageCosts]) -> int:
    """The greatest common divisor of all times, in nanoseconds."""
    times = []
    for stage, cost in enumerate(costs):
        times += [*split_durations(problem, costs, stage), cost.gather_ns, cost.reduce_ns]
        for transfer in cost.transfers:
            if transfer.route:
                times += [transfer.occupancy_ns, transfer.route.latency_ns]
    return math.gcd(*times) or 1
