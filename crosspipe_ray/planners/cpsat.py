"""The optimal order by constraint programming (CrossPipe, section 4.1), with OR-Tools CP-SAT.

Every compute op and every message that occupies a channel is an interval with a start. Ranks and
channels hold one interval at a time, data and microbatch order are precedences, and heads and tails
(`relaxation`) bound every start. Memory is precedences where a rank has one stage that gives all
back at once, and a cumulative resource otherwise.

Target mode: the makespan is first asked to be at most the bound, then the bound + 0.2 % and + 0.5 %, and
minimised only then. A target that is refused raises the bound.
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
    check_memory_suffices,
    stage_costs,
)
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.bounds import Bounds, bounds_of
from crosspipe_ray.planners.network import Order
from crosspipe_ray.planners.relaxation import split_durations
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Status = Literal["proven", "gap", "time_limit"]
Key = tuple[int, Kind, int]  # stage, F I or W (I stands for B too), microbatch
TARGETS = (0.0, 0.002, 0.005)
_KINDS = (Kind.F, Kind.I, Kind.W)


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found.

    Attributes:
        order: None if it found none within its time (or none shorter than ``upper_bound_ns``).
        lower_bound_ns: proven; at least that of `bounds`.
        status: ``proven`` optimal, within a target (``gap``), or stopped by the ``time_limit``.
    """

    order: Order | None
    makespan_ns: int | None
    lower_bound_ns: int
    status: Status


def solve(
    problem: Problem,
    *,
    time_limit_s: float = 60.0,
    workers: int = 2,
    seed: int = 0,
    upper_bound_ns: int | None = None,
    gap: float = 0.0,
    bounds: Bounds | None = None,
    on_progress: Callable[[int | None, int], None] = lambda incumbent_ns, bound_ns: None,
) -> Solution:
    """Searches for the shortest schedule.

    Args:
        problem: with stages, any placement.
        time_limit_s: for all of it; the model's building included.
        workers: threads of the solver. One gives the same result for the same seed, the clock permitting.
        seed: of the solver.
        upper_bound_ns: makespan of a known schedule; only shorter ones are looked for.
        gap: stop as soon as the schedule is known to be within this share of the bound.
        bounds: of the problem, if they are at hand.
        on_progress: told (makespan of the best order so far, lower bound) when either moves.

    Raises:
        InfeasibleError: a rank has less memory than one microbatch needs.
    """
    check_memory_suffices(problem)
    costs = stage_costs(problem)
    search = _Search(problem, costs, bounds or bounds_of(problem, costs), on_progress)
    search.known_ns = upper_bound_ns
    deadline = time.monotonic() + time_limit_s
    for target in (*TARGETS, None):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or search.is_within(gap):
            break
        limit_ns = search.limit_ns(target)
        if limit_ns is not None:
            share_s = left_s if target is None else left_s / 3
            search.attempt(limit_ns, is_target=target is not None, time_limit_s=share_s,
                           workers=workers, seed=seed)  # fmt: skip
    return search.solution(timed_out=time.monotonic() >= deadline)


class _Search:
    """The best order and the highest bound so far."""

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        bounds: Bounds,
        on_progress: Callable[[int | None, int], None],
    ) -> None:
        self._problem = problem
        self._costs = costs
        self._bounds = bounds
        self._on_progress = on_progress
        self.known_ns: int | None = None
        self.lower_bound_ns = bounds.makespan_ns
        self._order: Order | None = None
        self._makespan_ns: int | None = None

    def is_within(self, gap: float) -> bool:
        """Whether what is known is good enough."""
        best = self._best_ns()
        return best is not None and best <= self.lower_bound_ns * (1 + gap)

    def limit_ns(self, target: float | None) -> int | None:
        """Longest makespan worth asking for; None where the target asks for no less than what is known."""
        best = self._best_ns()
        if target is None:
            return best - 1 if best is not None else _serial_ns(self._problem, self._costs)
        limit = math.floor(self.lower_bound_ns * (1 + target))
        return limit if best is None or limit < best else None

    def attempt(
        self, limit_ns: int, *, is_target: bool, time_limit_s: float, workers: int, seed: int
    ) -> None:
        """One run of the solver for a makespan of at most ``limit_ns``."""
        from ortools.sat.python import cp_model  # a heavy import, for this method alone

        model = _Model(self._problem, self._costs, self._bounds, limit_ns)
        if not is_target:
            model.minimize()
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = time_limit_s
        solver.parameters.num_workers = workers
        solver.parameters.random_seed = seed
        status = solver.solve(model.model, _progress(self, model))
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            self._take(model.order(solver))
        if status == cp_model.INFEASIBLE:
            best = self._best_ns()
            self._raise_bound(limit_ns + 1 if best is None else min(best, limit_ns + 1))
        elif not is_target:
            self._raise_bound(math.ceil(solver.best_objective_bound) * model.unit_ns)

    def report(self, incumbent_ns: int | None, bound_ns: int) -> None:
        """Passes on what the solver says while it runs."""
        best = self._best_ns()
        shown = incumbent_ns if best is None or (incumbent_ns or best) < best else best
        self._on_progress(shown, max(bound_ns, self.lower_bound_ns))

    def solution(self, *, timed_out: bool) -> Solution:
        """What was found."""
        cut_short: Status = "time_limit" if timed_out else "gap"
        status: Status = "proven" if self.is_within(0.0) else cut_short
        return Solution(self._order, self._makespan_ns, self.lower_bound_ns, status)

    def _best_ns(self) -> int | None:
        known = [each for each in (self.known_ns, self._makespan_ns) if each is not None]
        return min(known, default=None)

    def _take(self, order: Order) -> None:
        timeline = simulate(self._problem, order.schedule, send_order=order.sends)
        best = self._best_ns()
        if best is None or timeline.makespan_ns < best:
            self._order, self._makespan_ns = order, timeline.makespan_ns
            self.report(timeline.makespan_ns, self.lower_bound_ns)

    def _raise_bound(self, bound_ns: int) -> None:
        if bound_ns > self.lower_bound_ns:
            self.lower_bound_ns = bound_ns
            self.report(None, bound_ns)


def _progress(search: _Search, model: _Model) -> cp_model.CpSolverSolutionCallback:
    from ortools.sat.python import cp_model

    class Callback(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            search.report(self.value(model.makespan) * model.unit_ns, search.lower_bound_ns)

    return Callback()


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
        lowest = min(self._limit, -(-bounds.makespan_ns // self.unit_ns))
        self.makespan = self.model.new_int_var(lowest, self._limit, "makespan")
        self._starts: dict[Key, Any] = {}
        self._messages: dict[Key, Any] = {}  # starts of those that occupy a channel
        self._ops()
        self._data()
        self._memory()

    def minimize(self) -> None:
        """Asks for the shortest makespan, not for any within the limit."""
        self.model.minimize(self.makespan)

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
        self.model.add(self.makespan >= variable + duration + tail)
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
                self.model.add(self._starts[stage, kind, m] >= self._end((stage, Kind(kind - 1), m)))
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
            self.model.add(
                start >= self._messages[source[0], source[1], source[2] - 1] + occupancy
            )
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

    def _parts(self, stage: int) -> tuple[int, int]:
        """Bytes that go back with I and with W; all with the latter where nothing or all goes with I."""
        cost = self._costs[stage]
        freed = 0 if self._problem.is_fused(stage) else cost.freed_by_input_bytes
        return freed, cost.activation_bytes - freed

    def _window(self, stage: int, limit: int) -> None:
        """With room for L, F of m comes after the end of W (or B) of m - L; exact if I frees nothing."""
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


def _serial_ns(problem: Problem, costs: Sequence[StageCosts]) -> int:
    """All microbatches one after the other: long enough for every problem."""
    per_microbatch = sum(
        sum(split_durations(problem, costs, stage))
        + sum(transfer.delay_ns for transfer in (cost.output, cost.gradient) if transfer)
        for stage, cost in enumerate(costs)
    )
    collectives = sum(cost.gather_ns + cost.reduce_ns for cost in costs)
    return problem.num_microbatches * per_microbatch + collectives
