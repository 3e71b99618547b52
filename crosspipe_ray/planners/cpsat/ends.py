"""The ends of a step as a model for CP-SAT, which refuses makespans that the whole model cannot.

Where several channels carry messages all the time, none has time to lose: an op that waits for its
rank makes a message late and leaves the next channel idle, which no later message makes good.
What is lost so is lost while the channels fill and while they run empty; in between the step
repeats itself, and a search over all of it tries the same again for every microbatch.

So the model has all messages, but ops only near the ends of the step. W's are left out, and memory
as far as it is no precedence; heads and tails know something of both. What the model cannot do, no
schedule can.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from crosspipe_ray.costs import StageCosts
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.makespan import Bounds
from crosspipe_ray.planners.bounds.precedence import Window, memory_windows
from crosspipe_ray.planners.bounds.relaxation import Times, least_durations
from crosspipe_ray.planners.cpsat.model import unit_of
from crosspipe_ray.planners.cpsat.rows import Row, Start, share
from crosspipe_ray.problem import Problem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True, slots=True)
class _Step:
    """An op or a message that every microbatch goes through; times in nanoseconds.

    Attributes:
        machine: a rank, or beyond the ranks a channel.
        op: stage and kind; None: a message that occupies a channel.
        duration: on the machine.
        lag: from its end to the next step.
        heads: per microbatch, least time until it starts.
        tails: per microbatch, least time from its end to the end of the step.
    """

    machine: int
    op: tuple[int, Kind] | None
    duration: int
    lag: int
    heads: Times
    tails: Times


class EndsModel:
    """Whether the ends of a step leave room for a makespan.

    Args:
        problem: with stages.
        costs: of the problem.
        bounds: of the problem.
        limit_ns: no schedule is asked for that is longer.
        reach_ns: an op is near an end if its head or its tail is less.

    Attributes:
        model: for the solver.
        unit_ns: all times are multiples of it.
        limit_ns: as given.
        reach_ns: as given.
    """

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        limit_ns: int,
        reach_ns: int,
    ) -> None:
        from ortools.sat.python import cp_model

        self.model = cp_model.CpModel()
        self.unit_ns = unit_of(problem, costs)
        self.limit_ns = limit_ns
        self.reach_ns = reach_ns
        self._steps = steps = _steps(problem, costs, bounds)
        self._starts: list[list[Start | None]] = []
        for m in range(problem.num_microbatches):
            before = self._starts[-1] if m else [None] * len(steps)
            self._starts.append(self._microbatch(steps, m, before))
        self._memory(memory_windows(problem, costs))
        self._lines = self._machines()

    @property
    def is_whole(self) -> bool:
        """Whether the ends meet, and nothing is left out in between."""
        return all(start for starts in self._starts for start in starts)

    def within(self, limit_ns: int) -> cp_model.CpModel:
        """The model for a limit that is no higher; building one takes many times as long."""
        model = self.model.clone()
        sooner = (self.limit_ns - limit_ns) // self.unit_ns
        kept = (start for starts in self._starts for start in starts if start)
        for start in chain(kept, self._lines):
            model.add(start.variable <= start.latest - sooner)
        return model

    def starts_ns(self, solver: cp_model.CpSolver) -> dict[tuple[int, Kind], Times]:
        """When the F's and I's of each stage start in a solution, by microbatch.

        One that is left out starts when what the microbatch did before has reached it.
        """
        found: dict[tuple[int, Kind], Times] = {}
        earliest = np.zeros(len(self._starts), dtype=np.int64)
        for place, step in enumerate(self._steps):
            kept = [starts[place] for starts in self._starts]
            values = [solver.value(start.variable) * self.unit_ns if start else 0 for start in kept]
            start_ns = np.maximum(values, np.maximum(earliest, step.heads))
            if step.op:
                found[step.op] = start_ns
            earliest = start_ns + step.duration + step.lag
        return found

    def _microbatch(
        self, steps: Sequence[_Step], m: int, before: Sequence[Start | None]
    ) -> list[Start | None]:
        """Adds the steps of a microbatch, each after the same one of the microbatch before.

        Returns:
            Their starts; None for what is left out, which takes its time all the same.
        """
        starts: list[Start | None] = []
        last, since = None, 0
        for step, start_before in zip(steps, before, strict=True):
            start = self._start(step, m) if self._is_kept(step, m) else None
            if start:
                if last is not None:
                    self.model.add(start.variable >= last + since)
                if start_before:
                    duration = step.duration // self.unit_ns
                    self.model.add(start.variable >= start_before.variable + duration)
                last, since = start.variable, 0
            since += (step.duration + step.lag) // self.unit_ns
            starts.append(start)
        return starts

    def _memory(self, windows: Sequence[Window]) -> None:
        """Has F's wait for the I's of microbatches that must have gone."""
        steps, starts = self._steps, self._starts
        places = {step.op: place for place, step in enumerate(steps) if step.op}
        for window in windows:
            source, target = places[window.source, Kind.I], places[window.target, Kind.F]
            duration = steps[source].duration // self.unit_ns
            shift = min(window.input, window.weight)
            for m in range(shift, len(starts)):
                start, before = starts[m][target], starts[m - shift][source]
                if start and before:
                    self.model.add(start.variable >= before.variable + duration)

    def _machines(self) -> list[Start]:
        """Has ranks and channels do one thing at a time; starts of merged rows."""
        rows: dict[int, list[Row]] = defaultdict(list)
        for place, step in enumerate(self._steps):
            if step.duration:
                kept = [start for starts in self._starts if (start := starts[place])]
                rows[step.machine].append(Row(kept, step.duration // self.unit_ns))
        return [start for each in rows.values() for start in share(self.model, each)]

    def _is_kept(self, step: _Step, m: int) -> bool:
        return step.op is None or min(step.heads[m], step.tails[m]) < self.reach_ns

    def _start(self, step: _Step, m: int) -> Start:
        earliest = -(-int(step.heads[m]) // self.unit_ns)
        latest = (self.limit_ns - int(step.tails[m]) - step.duration) // self.unit_ns
        return Start.within(self.model, earliest, latest)


def _steps(problem: Problem, costs: Sequence[StageCosts], bounds: Bounds) -> list[_Step]:
    """The way of a microbatch: F of all stages, I of all stages backwards, messages in between."""
    num_stages = len(costs)
    way = [(stage, Kind.F) for stage in range(num_stages)]
    way += [(stage, Kind.I) for stage in reversed(range(num_stages))]
    steps: list[_Step] = []
    for stage, kind in reversed(way):
        transfer = costs[stage].transfer(kind)
        route = transfer.route if transfer else None
        lag = route.latency_ns if route else 0
        duration = least_durations(problem, costs, stage)[kind]
        heads, tails = bounds.heads[stage, kind], bounds.tails[stage, kind]
        if transfer and route and transfer.occupancy_ns:
            rest = lag + steps[-1].duration + steps[-1].tails
            machine = len(problem.ranks) + route.channel
            ready = heads + duration
            steps.append(_Step(machine, None, transfer.occupancy_ns, lag, ready, rest))
            lag = 0
        steps.append(_Step(costs[stage].rank, (stage, kind), duration, lag, heads, tails))
    return steps[::-1]


def tune(solver: cp_model.CpSolver) -> None:
    """What pays on the ends of a step, but not on all of it.

    There is little to simplify, and trying values out beforehand takes longer than the search.
    """
    parameters = solver.parameters
    parameters.cp_model_presolve = False
    parameters.cp_model_probing_level = 0
    parameters.probing_deterministic_time_limit = 0.0
    parameters.inprocessing_probing_dtime = 0.0


def is_bound_by_channels(problem: Problem, costs: Sequence[StageCosts]) -> bool:
    """Whether a channel of several rows of messages has more work than any rank."""
    work, rows = Counter[int](), Counter[int]()
    for stage, cost in enumerate(costs):
        work[cost.rank] += sum(least_durations(problem, costs, stage))
        for transfer in cost.transfers:
            if transfer.route:
                channel = len(problem.ranks) + transfer.route.channel
                work[channel] += transfer.occupancy_ns
                rows[channel] += 1
    busiest = max(work, key=work.__getitem__)
    return rows[busiest] > 1
