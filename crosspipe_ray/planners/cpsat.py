"""The optimal order by constraint programming (CrossPipe, section 4.1), with OR-Tools CP-SAT.

Every compute op and every message that occupies a channel is an interval with a start. Ranks and
channels hold one interval at a time, data and microbatch order are precedences, and heads and tails
(`relaxation`) bound every start. Memory is precedences where a rank has one stage that gives all
back at once, and a cumulative resource otherwise.

Target mode: the solver is not asked for the shortest makespan, but for any schedule up to a target
between the bound and the best known makespan. A schedule lowers the latter, a refusal raises the
bound, and silence moves the target; so both ends close in, and proofs come early, when a refusal is
cheap. Where all targets are met with silence, the solver improves the best known order, given as a
hint, for a while, and is then asked again with more patience.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from crosspipe_ray.costs import (
    StageCosts,
    activation_limit_bytes,
    stage_costs,
)
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.bounds import Bounds, bounds_of
from crosspipe_ray.planners.network import Order
from crosspipe_ray.planners.relaxation import split_durations
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Status = Literal["proven", "gap", "time_limit"]
Key = tuple[int, Kind, int]  # stage, F I or W (I stands for B too), microbatch
_FIRST_PATIENCE = 0.1  # of the solver's deterministic time, which is about seconds
_TARGETS = (0.5, 0.2, 0.0)  # between the bound and the best known makespan
_IMPROVING = 4  # times the patience: for improving the best known order
_KINDS = (Kind.F, Kind.I, Kind.W)


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found.

    Attributes:
        order: the best known; the given one, if none shorter was found.
        lower_bound_ns: proven; at least that of `bounds`.
        status: ``proven`` optimal, within the wanted ``gap``, or stopped by the ``time_limit``.
    """

    order: Order
    makespan_ns: int
    lower_bound_ns: int
    status: Status


def solve(
    problem: Problem,
    *,
    known: Order,
    time_limit_s: float = 60.0,
    effort: float = math.inf,
    workers: int = 2,
    seed: int = 0,
    gap: float = 0.0,
    bounds: Bounds | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Solution:
    """Searches for the shortest schedule.

    Args:
        problem: with stages, any placement.
        known: any order of it; the search is for shorter ones.
        time_limit_s: for all of it.
        effort: for all of it, in the solver's deterministic time (about seconds). Where the clock
            does not cut in, the result depends on it, the workers and the seed alone.
        workers: threads of the solver.
        seed: of the solver.
        gap: stop as soon as the schedule is known to be within this share of the bound.
        bounds: of the problem, if they are at hand.
        on_progress: told (makespan of the best order so far, lower bound) when either moves.
    """
    costs = stage_costs(problem)
    bounds = bounds or bounds_of(problem, costs)
    limits = _Limits(time.monotonic() + time_limit_s, effort, workers, seed)
    search = _Search(problem, costs, bounds, known, limits, report=on_progress)
    patience = _FIRST_PATIENCE
    while not (search.is_within(gap) or search.is_stuck or limits.are_reached):
        for target in _TARGETS:
            if limits.are_reached or search.attempt(target, patience):
                break
        else:
            search.improve(gap, _IMPROVING * patience)
            patience *= _IMPROVING
    return search.solution(gap)


@dataclass(slots=True)
class _Limits:
    """What is left of the clock and of the effort."""

    deadline: float
    effort: float
    workers: int
    seed: int

    @property
    def are_reached(self) -> bool:
        return time.monotonic() >= self.deadline or self.effort <= 0

    def solver(self, patience: float) -> cp_model.CpSolver:
        """One that gives up in time; no linear relaxations, as they are of no use here."""
        from ortools.sat.python import cp_model  # a heavy import, for this method alone

        solver = cp_model.CpSolver()
        parameters = solver.parameters
        parameters.max_time_in_seconds = max(0.0, self.deadline - time.monotonic())
        parameters.max_deterministic_time = min(patience, self.effort)
        parameters.num_workers = self.workers
        parameters.interleave_search = self.workers > 1  # else the faster thread would decide
        parameters.random_seed = self.seed
        parameters.linearization_level = 0
        return solver

    def solve(self, solver: cp_model.CpSolver, model: _Model) -> cp_model.CpSolverStatus:
        """Solves, and counts the effort."""
        status = solver.solve(model.model)
        self.effort -= solver.response_proto.deterministic_time
        return status


class _Search:
    """The best order and the highest bound so far."""

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        known: Order,
        limits: _Limits,
        *,
        report: Callable[[int, int], None],
    ) -> None:
        self._problem = problem
        self._costs = costs
        self._bounds = bounds
        self._limits = limits
        self._report = report
        self._bound_ns = bounds.makespan_ns  # of orders without B where the backward is split
        self._is_certain = _splitting_costs_nothing(problem, costs)
        self._order = known
        self.is_stuck = False
        self._makespan_ns = _makespan_ns(problem, known)

    def is_within(self, gap: float) -> bool:
        """Whether the best order is good enough."""
        return self._makespan_ns <= self._bound_ns * (1 + gap)

    def attempt(self, target: float, patience: float) -> bool:
        """Asks for a schedule up to a target; whether the bound or the best makespan moved."""
        from ortools.sat.python import cp_model

        limit_ns = self._bound_ns + int(target * (self._makespan_ns - 1 - self._bound_ns))
        model = _Model(self._problem, self._costs, self._bounds, limit_ns)
        solver = self._limits.solver(patience)
        status = self._limits.solve(solver, model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            order = model.order(solver)
            makespan_ns = _makespan_ns(self._problem, order)
            if makespan_ns >= self._makespan_ns:  # ops without duration, which the clock must order
                self.is_stuck = True
                return True
            self._order, self._makespan_ns = order, makespan_ns
        elif status == cp_model.INFEASIBLE:
            # times are multiples of the unit
            self._bound_ns = (limit_ns // model.unit_ns + 1) * model.unit_ns
        else:
            return False
        self._report(self._makespan_ns, self._bound_ns)
        return True

    def improve(self, gap: float, patience: float) -> None:
        """Looks for the shortest order, starting from the best known one."""
        from ortools.sat.python import cp_model

        model = _Model(self._problem, self._costs, self._bounds, self._makespan_ns)
        model.minimize(self._bounds)
        model.hint(simulate(self._problem, self._order.schedule, send_order=self._order.sends))
        solver = self._limits.solver(patience)
        solver.parameters.relative_gap_limit = gap
        if self._limits.solve(solver, model) in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            order = model.order(solver)
            makespan_ns = _makespan_ns(self._problem, order)
            if makespan_ns < self._makespan_ns:
                self._order, self._makespan_ns = order, makespan_ns
                self._report(self._makespan_ns, self._bound_ns)

    def solution(self, gap: float) -> Solution:
        """What was found."""
        within: Status = "gap" if self.is_within(gap) else "time_limit"
        status: Status = "proven" if self.is_within(0.0) else within
        if self._is_certain:
            return Solution(self._order, self._makespan_ns, self._bound_ns, status)
        bound_ns = self._bounds.makespan_ns
        proven: Status = "proven" if self._makespan_ns <= bound_ns else within
        return Solution(self._order, self._makespan_ns, bound_ns, proven)


def _splitting_costs_nothing(problem: Problem, costs: Sequence[StageCosts]) -> bool:
    """Whether I and W are never longer than B: refusing their orders refuses B's too."""
    return all(
        problem.is_fused(stage)
        or cost.duration_ns[Kind.I] + cost.duration_ns[Kind.W] <= cost.duration_ns[Kind.B]
        for stage, cost in enumerate(costs)
    )


def _makespan_ns(problem: Problem, order: Order) -> int:
    return simulate(problem, order.schedule, send_order=order.sends).makespan_ns


class _Model:
    """Intervals and constraints, in units of the greatest common divisor of all times."""

    def __init__(
        self, problem: Problem, costs: Sequence[StageCosts], bounds: Bounds, limit_ns: int
    ) -> None:
        from ortools.sat.python import cp_model

        self._problem = problem
        self._costs = costs
        self._bounds = bounds
        self.unit_ns = _unit_ns(problem, costs)
        self._limit = limit_ns // self.unit_ns
        self.model = cp_model.CpModel()
        self._starts: dict[Key, Any] = {}
        self._messages: dict[Key, Any] = {}  # starts of those that occupy a channel
        self._ops()
        self._data()
        self._memory()
        self._reductions()

    def minimize(self, bounds: Bounds) -> None:
        """Asks for the shortest makespan in place of any within the limit."""
        lowest = min(self._limit, bounds.makespan_ns // self.unit_ns)
        makespan = self.model.new_int_var(lowest, self._limit, "makespan")
        for key, start in self._starts.items():
            tail = int(bounds.tails[key]) // self.unit_ns
            self.model.add(makespan >= start + self._duration(key) + tail)
        self.model.minimize(makespan)

    def hint(self, timeline: Timeline) -> None:
        """Tells the starts of a known order."""
        for span in (span for spans in timeline.ranks for span in spans):
            stage, kind, m = span.op
            assert m is not None, "compute ops have a microbatch"
            key = stage, Kind.I if kind is Kind.B else kind, m
            self.model.add_hint(self._starts[key], span.start_ns // self.unit_ns)
        for message in timeline.sends:
            stage, kind, m = message.op
            assert m is not None, "messages have a microbatch"
            key = stage, Kind.F if kind is Kind.SEND_F else Kind.I, m
            if key in self._messages:
                self.model.add_hint(self._messages[key], message.start_ns // self.unit_ns)

    def order(self, solver: cp_model.CpSolver) -> Order:
        """The order of a solution."""
        ranks: list[list[tuple[int, int, int, int, Key]]] = [[] for _ in self._problem.ranks]
        for key, variable in self._starts.items():
            stage, kind, m = key
            start = solver.value(variable)
            if kind is not Kind.W or not self._problem.is_fused(stage):
                line = stage if kind is Kind.F else 2 * len(self._costs) - stage + (kind is Kind.W)
                ranks[self._costs[stage].rank].append(
                    (start, start + self._duration(key), m, line, key)
                )
        schedule = Schedule.of([self._op(entry[-1]) for entry in sorted(ops)] for ops in ranks)
        return Order(schedule, self._sends(solver))

    def _sends(self, solver: cp_model.CpSolver) -> tuple[Op, ...] | None:
        """All timed messages; one that occupies nothing leaves when its op ends."""
        sends = []
        for key, variable in self._starts.items():
            stage, kind, m = key
            transfer = self._costs[stage].transfer(kind)
            if transfer and transfer.route:
                at = (
                    solver.value(self._messages[key])
                    if key in self._messages
                    else solver.value(variable) + self._duration(key)
                )
                sends.append((at, stage, kind, m, Op(stage, transfer.kind, m)))
        return tuple(entry[-1] for entry in sorted(sends)) or None

    def _op(self, key: Key) -> Op:
        stage, kind, m = key
        return Op(stage, Kind.B if kind is Kind.I and self._problem.is_fused(stage) else kind, m)

    def _duration(self, key: Key) -> int:
        return split_durations(self._problem, self._costs, key[0])[key[1]] // self.unit_ns

    def _ops(self) -> None:
        on_rank: list[list[Any]] = [[] for _ in self._problem.ranks]
        for stage, cost in enumerate(self._costs):
            for kind in _KINDS:
                for m in range(self._problem.num_microbatches):
                    self._starts[stage, kind, m] = self._start((stage, kind, m))
                    if self._duration((stage, kind, m)):
                        on_rank[cost.rank].append(self._interval((stage, kind, m)))
        for intervals in on_rank:
            self.model.add_no_overlap(intervals)

    def _start(self, key: Key) -> Any:
        stage, kind, m = key
        head = -(-int(self._bounds.heads[stage, kind, m]) // self.unit_ns)
        tail = -(-int(self._bounds.tails[stage, kind, m]) // self.unit_ns)
        duration = self._duration(key)
        latest = self._limit - tail - duration
        variable = self.model.new_int_var(min(head, latest), latest, f"{stage}{kind.name}{m}")
        if head > latest:
            self.model.add(variable >= head)  # no schedule is this short
        return variable

    def _interval(self, key: Key) -> Any:
        return self.model.new_fixed_size_interval_var(
            self._starts[key], self._duration(key), f"{key[0]}{key[1].name}{key[2]}_on_rank"
        )

    def _end(self, key: Key) -> Any:
        return self._starts[key] + self._duration(key)

    def _data(self) -> None:
        on_channel: dict[int, list[Any]] = {}
        for stage, kind, m in self._starts:
            if m:
                self.model.add(self._starts[stage, kind, m] >= self._end((stage, kind, m - 1)))
            if kind is not Kind.F:
                self.model.add(
                    self._starts[stage, kind, m] >= self._end((stage, Kind(kind - 1), m))
                )
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
            self.model.add(self._starts[target] >= self._end(source) + latency)
            return
        occupancy = transfer.occupancy_ns // self.unit_ns
        name = f"{source[0]}{transfer.kind.name}{source[2]}"
        start = self.model.new_int_var(0, self._limit, name)
        self._messages[source] = start
        self.model.add(start >= self._end(source))
        self.model.add(self._starts[target] >= start + occupancy + latency)
        if source[2]:
            self.model.add(start >= self._messages[source[0], source[1], source[2] - 1] + occupancy)
        interval = self.model.new_fixed_size_interval_var(start, occupancy, f"{name}_on_channel")
        on_channel.setdefault(route.channel, []).append(interval)

    def _memory(self) -> None:
        for rank, stages in enumerate(self._problem.stages_of_rank):
            limit = activation_limit_bytes(self._problem, rank)
            if limit is None:
                continue
            for stage in stages:
                self._window(stage, limit)
            if len(stages) > 1 or self._parts(stages[0])[0]:
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

    def _parts(self, stage: int) -> tuple[int, int]:
        """Bytes that go back with I and with W (the end of B, where it is fused)."""
        cost = self._costs[stage]
        freed = 0 if self._problem.is_fused(stage) else cost.freed_by_input_bytes
        return freed, cost.activation_bytes - freed

    def _window(self, stage: int, limit: int) -> None:
        """With room for L, F of m comes after W (or B) of m - L; exact if I frees nothing."""
        freed, kept = self._parts(stage)
        if not kept:
            return
        window = (limit - freed - kept) // kept + 1
        for m in range(window, self._problem.num_microbatches):
            self.model.add(self._starts[stage, Kind.F, m] >= self._end((stage, Kind.W, m - window)))

    def _cumulative(self, stages: Sequence[int], limit: int) -> None:
        intervals, demands = [], []
        for stage in stages:
            for kind, num_bytes in zip((Kind.I, Kind.W), self._parts(stage), strict=True):
                for m in range(self._problem.num_microbatches if num_bytes else 0):
                    intervals.append(self._held((stage, kind, m)))
                    demands.append(num_bytes)
        self.model.add_cumulative(intervals, demands, limit)

    def _held(self, release: Key) -> Any:
        """From the start of F to the end of the op that gives the memory back."""
        stage, kind, m = release
        size = self.model.new_int_var(0, self._limit, "")
        start = self._starts[stage, Kind.F, m]
        return self.model.new_interval_var(
            start, size, self._end(release), f"{stage}{kind.name}{m}_held"
        )


def _unit_ns(problem: Problem, costs: Sequence[StageCosts]) -> int:
    times = []
    for stage, cost in enumerate(costs):
        times += [*split_durations(problem, costs, stage), cost.gather_ns, cost.reduce_ns]
        for transfer in (cost.output, cost.gradient):
            if transfer and transfer.route:
                times += [transfer.occupancy_ns, transfer.route.latency_ns]
    return math.gcd(*times) or 1
