"""Event-driven list scheduling: whenever a rank is free, it runs the most urgent op that it can.

Urgency is the tail of the bound (`bounds.tail_table_ns`): the least time from an op to the end of
the step. A rank waits a little instead when a more urgent op's message is known to arrive soon. A
few parameters bend the urgency; a seeded search over them keeps the best schedule by simulation and
stops at the bound.

The paper's greedy (section 4.2, Algorithm 1) chooses by phase instead of urgency.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from crosspipe_ray.costs import (
    StageCosts,
    activation_limit_bytes,
    check_memory_suffices,
    stage_costs,
)
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.bounds import lower_bound_ns, tail_table_ns
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate

DEFAULT_ITERATIONS = 60
_END, _CHOICE = 0, 1


@dataclass(frozen=True, slots=True)
class Bias:
    """How urgency is bent. All times are shares of the mean duration of an op.

    Attributes:
        patience: how long a rank waits for a more urgent op, as a share of the op it could start.
        offset: added urgency per kind (F, I, W).
        slope: added urgency per kind, times the stage's share of the depth of the pipeline.
        in_flight: share of the microbatches that a stage may hold between F and the end of its
            backward.
    """

    patience: float = 0.5
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slope: tuple[float, float, float] = (0.0, 0.0, 0.0)
    in_flight: float = 1.0


_STARTS = (
    Bias(),
    Bias(patience=0.0),
    Bias(patience=1.0),
    Bias(offset=(0.0, 4.0, 0.0)),
    Bias(in_flight=0.5),
)


def greedy(
    problem: Problem,
    *,
    time_limit_s: float = 1.0,
    iterations: int = DEFAULT_ITERATIONS,
    seed: int = 0,
) -> Schedule:
    """The best schedule that the search finds.

    Args:
        problem: with stages, any placement.
        time_limit_s: no new attempt starts after it; one attempt is always made.
        iterations: number of attempts; with a generous time limit the result depends on it and
            the seed alone.
        seed: of the search.

    Raises:
        InfeasibleError: a rank has less memory than one microbatch needs.
    """
    check_memory_suffices(problem)
    deadline = time.monotonic() + time_limit_s
    costs, bound, rng = stage_costs(problem), lower_bound_ns(problem), random.Random(seed)
    tails = tail_table_ns(problem, costs)
    best: tuple[int, Schedule, Bias] | None = None
    for attempt in range(iterations):
        bias = (
            _STARTS[attempt] if attempt < len(_STARTS) or best is None else _mutated(best[2], rng)
        )
        schedule = list_schedule(problem, costs, tails, bias)
        makespan = simulate(problem, schedule).makespan_ns
        if best is None or makespan < best[0]:
            best = makespan, schedule, bias
        if best[0] <= bound or time.monotonic() > deadline:
            break
    assert best is not None, "iterations is at least 1"
    return best[1]


def list_schedule(
    problem: Problem, costs: Sequence[StageCosts], tails: dict[Kind, list[list[int]]], bias: Bias
) -> Schedule:
    """One pass of list scheduling: orders by urgency, within memory, never deadlocked.

    F of a stage starts only while the rank has room left for all its later stages too; so the
    oldest microbatch can always go on, whatever the placement.
    """
    run = _Run(problem, costs, _urgencies(costs, tails, bias), bias)
    run.go()
    return Schedule.of(rank.order for rank in run.ranks)


@dataclass(slots=True)
class _StageState:
    """Progress of one stage.

    ``inputs`` and ``gradients`` hold arrival times, known from the moment of sending.
    """

    cost: StageCosts
    is_fused: bool
    reserve_bytes: int  # activations of the rank's later stages
    inputs: list[int | None]
    gradients: list[int | None]
    done: list[int] = field(default_factory=lambda: [0, 0, 0])  # F, I (or B), W that have started


@dataclass(slots=True)
class _RankState:
    """One rank: its stages, its order so far, the memory it holds."""

    stages: dict[int, _StageState]
    limit_bytes: int | None
    held_bytes: int = 0
    is_busy: bool = False
    order: list[Op] = field(default_factory=list)


class _Run:
    """One pass over the events: ends of ops, and arrivals at idle ranks."""

    def __init__(
        self,
        problem: Problem,
        costs: Sequence[StageCosts],
        urgency: list[list[list[float]]],
        bias: Bias,
    ) -> None:
        self.ranks = [_rank_state(problem, costs, rank) for rank in range(len(problem.ranks))]
        self._costs = costs
        self._urgency = urgency
        self._patience = bias.patience
        self._num_microbatches = problem.num_microbatches
        self._cap = max(1, round(bias.in_flight * problem.num_microbatches))
        self._channel_free: dict[int, int] = {}
        # (time, phase, rank, op): at equal times, all ends of ops come before any choice is made.
        self._events: list[tuple[int, int, int, Op | None]] = [
            (costs[0].gather_ns, _CHOICE, costs[0].rank, None)
        ]

    def go(self) -> None:
        """Runs until every op has an end."""
        events = self._events
        while events:
            now, _, rank, op = heappop(events)
            state = self.ranks[rank]
            if op is not None:
                state.is_busy = False
                self._finish(state, op, now)
                heappush(events, (now, _CHOICE, rank, None))
            elif not state.is_busy:
                self._choose(rank, state, now)

    def _choose(self, rank: int, state: _RankState, now: int) -> None:
        """Starts the most urgent op that is ready, unless a more urgent one is worth the wait."""
        ready, coming = self._best(state, now)
        if ready is None:
            return
        stage, index, urgency = ready
        duration = self._duration(state.stages[stage], index)
        if coming and coming[1] > urgency and coming[0] - now <= self._patience * duration:
            return  # its arrival is an event of its own
        self._start(rank, state, stage, index, now)

    def _best(
        self, state: _RankState, now: int
    ) -> tuple[tuple[int, int, float] | None, tuple[int, float] | None]:
        """The most urgent op that can start, and the most urgent one on its way.

        The first as (stage, kind, urgency), the second as (arrival, urgency).
        """
        ready: tuple[int, int, float] | None = None
        coming: tuple[int, float] | None = None
        for stage, progress in state.stages.items():
            for index in range(3):
                at = self._available_at(state, progress, index)
                if at is None:
                    continue
                urgency = self._urgency[stage][index][progress.done[index]]
                if at <= now:
                    if ready is None or urgency > ready[2]:
                        ready = stage, index, urgency
                elif coming is None or urgency > coming[1]:
                    coming = at, urgency
        return ready, coming

    def _available_at(self, state: _RankState, progress: _StageState, index: int) -> int | None:
        """When the stage's next op of a kind has what it needs; None: not known yet."""
        forwards, backwards, weights = progress.done
        if index == Kind.W:
            return 0 if weights < backwards and not progress.is_fused else None
        if index == Kind.I:
            return progress.gradients[backwards] if backwards < forwards else None
        if forwards == self._num_microbatches or forwards - backwards >= self._cap:
            return None
        needed = state.held_bytes + progress.cost.activation_bytes + progress.reserve_bytes
        if state.limit_bytes is not None and needed > state.limit_bytes:
            return None
        return progress.inputs[forwards]

    def _start(self, rank: int, state: _RankState, stage: int, index: int, now: int) -> None:
        progress = state.stages[stage]
        kind = Kind.B if index == Kind.I and progress.is_fused else Kind(index)
        op = Op(stage, kind, progress.done[index])
        progress.done[index] += 1
        if kind is Kind.F:
            state.held_bytes += progress.cost.activation_bytes
        state.is_busy = True
        state.order.append(op)
        heappush(self._events, (now + progress.cost.duration_ns[kind], _END, rank, op))

    def _finish(self, state: _RankState, op: Op, now: int) -> None:
        """Gives memory back and sends the message."""
        cost = self._costs[op.stage]
        state.held_bytes -= cost.released_bytes(op.kind)
        transfer = cost.transfer(op.kind)
        if op.kind is Kind.F:
            self._own_gradient(state, op, now)
        if transfer is None:
            return
        arrive = now
        if transfer.route:
            channel = transfer.route.channel
            end = max(now, self._channel_free.get(channel, 0)) + transfer.occupancy_ns
            self._channel_free[channel] = end
            arrive = end + transfer.route.latency_ns
        self._deliver(op, transfer.dst, arrive)

    def _own_gradient(self, state: _RankState, op: Op, now: int) -> None:
        """The last stage makes its gradient itself, as soon as its F ends."""
        if op.stage == len(self._costs) - 1 and op.microbatch is not None:
            state.stages[op.stage].gradients[op.microbatch] = now

    def _deliver(self, op: Op, dst: int, arrive: int) -> None:
        assert op.microbatch is not None
        stages = self.ranks[dst].stages
        if op.kind is Kind.F:
            arrive = max(arrive, self._costs[op.stage + 1].gather_ns)
            stages[op.stage + 1].inputs[op.microbatch] = arrive
        else:
            stages[op.stage - 1].gradients[op.microbatch] = arrive
        heappush(self._events, (arrive, _CHOICE, dst, None))

    def _duration(self, progress: _StageState, index: int) -> int:
        return progress.cost.duration_ns[Kind.B if index == Kind.I and progress.is_fused else index]


def _rank_state(problem: Problem, costs: Sequence[StageCosts], rank: int) -> _RankState:
    held, later_bytes = {}, 0
    for stage in reversed(problem.stages_of_rank[rank]):
        first_input: list[int | None] = [
            None if stage else costs[0].gather_ns
        ] * problem.num_microbatches
        no_gradient: list[int | None] = [None] * problem.num_microbatches
        held[stage] = _StageState(
            costs[stage], problem.is_fused(stage), later_bytes, first_input, no_gradient
        )
        later_bytes += costs[stage].activation_bytes
    return _RankState(held, activation_limit_bytes(problem, rank))


def _urgencies(
    costs: Sequence[StageCosts], tails: dict[Kind, list[list[int]]], bias: Bias
) -> list[list[list[float]]]:
    """Urgency by stage, kind and microbatch: the tail, bent."""
    mean = sum(sum(cost.duration_ns[:3]) for cost in costs) / (3 * len(costs))
    depth = max(1, len(costs) - 1)
    return [
        [
            [
                tail + mean * (bias.offset[kind] + bias.slope[kind] * stage / depth)
                for tail in tails[kind][stage]
            ]
            for kind in (Kind.F, Kind.I, Kind.W)
        ]
        for stage in range(len(costs))
    ]


def _mutated(bias: Bias, rng: random.Random) -> Bias:
    """A neighbour of a bias: one of its parts drawn anew or moved."""
    part = rng.randrange(4)
    if part == 0:
        return replace(bias, patience=rng.choice((0.0, 0.25, 0.5, 0.75, 1.0, 1.5)))
    if part == 1:
        return replace(bias, in_flight=rng.choice((0.25, 0.35, 0.5, 0.65, 0.8, 1.0)))
    moved = bias.offset if part == 2 else bias.slope
    kind, step = rng.randrange(3), rng.gauss(0.0, 3.0)
    bent = (
        moved[0] + step * (kind == 0),
        moved[1] + step * (kind == 1),
        moved[2] + step * (kind == 2),
    )
    return replace(bias, offset=bent) if part == 2 else replace(bias, slope=bent)
