"""A problem as the flat sequences that `kernel` works on, and its orders as a schedule again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.kernel import NEVER, Net, State
from crosspipe_ray.planners.relaxation import split_durations
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Order:
    """A schedule and, where channels are shared, the order of the messages.

    Attributes:
        sends: SEND ops in the order in which channels serve them; None: by ready time.
    """

    schedule: Schedule
    sends: tuple[Op, ...] | None = None


def net_of(problem: Problem, costs: Sequence[StageCosts]) -> Net:
    """The problem as lists. A fused stage's W has duration -1: it never runs."""
    stages = [list(reversed(held)) for held in problem.stages_of_rank]
    channels = _Channels(costs)
    rows = [(stage, kind) for stage in range(len(costs)) for kind in (Kind.F, Kind.I, Kind.W)]
    return Net(
        first=_offsets([len(held) for held in stages]),
        stages=[stage for held in stages for stage in held],
        rank=list(problem.rank_of_stage),
        duration=[_duration(problem, costs, *row) for row in rows],
        taken=[cost.activation_bytes for cost in costs],
        reserve=_reserves(problem, costs),
        freed=[_freed(problem, costs, *row) for row in rows],
        limit=[_limit(problem, rank) for rank in range(len(problem.ranks))],
        target=[_target(len(costs), *row) for row in rows],
        gate=_gates(problem, costs),
        finish=[cost.reduce_ns for cost in costs],
        **channels.sequences(rows),
    )


def fresh_state(net: Net, num_microbatches: int) -> State:
    """Nothing has run; only the first stage has its inputs."""
    num_rows, num_ranks = len(net.duration), len(net.limit)
    ready = [NEVER] * (num_rows * num_microbatches)
    ready[:num_microbatches] = [0] * num_microbatches
    return State(
        ready=ready,
        done=[0] * num_rows,
        ended=[0] * num_rows,
        sent=[0] * num_rows,
        held=[0] * num_ranks,
        busy=[0] * num_ranks,
        occupied=[0] * len(net.user_first),
        order=[0] * (num_rows * num_microbatches),
        length=[0] * num_ranks,
        sends=[0] * (sum(channel >= 0 for channel in net.shared) * num_microbatches),
        num_sends=[0],
    )


def order_of(problem: Problem, net: Net, state: State) -> Order:
    """What a run of the kernel left behind."""
    num_microbatches = problem.num_microbatches
    kinds = [
        (stage, Kind.B if kind is Kind.I and problem.is_fused(stage) else kind)
        for stage in range(len(problem.stages))
        for kind in (Kind.F, Kind.I, Kind.W)
    ]
    ranks = []
    for rank in range(len(problem.ranks)):
        begin = 3 * num_microbatches * net.first[rank]
        ops = state.order[begin : begin + state.length[rank]]
        ranks.append(
            [Op(*kinds[op // num_microbatches], op % num_microbatches) for op in ops]
        )
    return Order(Schedule.of(ranks), _sends(kinds, net, state, num_microbatches))


def _sends(
    kinds: Sequence[tuple[int, Kind]], net: Net, state: State, num_microbatches: int
) -> tuple[Op, ...] | None:
    """All timed messages, or None where no channel is shared; those on own channels in microbatch order."""
    shared = [op for op in state.sends[: state.num_sends[0]]]
    if not shared:
        return None
    alone = [
        row * num_microbatches + m
        for row in range(len(net.duration))
        if net.own[row] >= 0
        for m in range(num_microbatches)
    ]
    send_kinds = (Kind.SEND_F, Kind.SEND_B)
    return tuple(
        Op(op // num_microbatches // 3, send_kinds[op // num_microbatches % 3], op % num_microbatches)
        for op in (*shared, *alone)
    )


class _Channels:
    """Who uses which channel; a timed message without occupancy uses its channel too."""

    def __init__(self, costs: Sequence[StageCosts]) -> None:
        self._costs = costs
        self._routes = {
            (stage, kind): transfer
            for stage, cost in enumerate(costs)
            for kind in (Kind.F, Kind.I)
            if (transfer := cost.transfer(kind)) and transfer.route
        }
        self._num_users = Counter(
            transfer.route.channel for transfer in self._routes.values() if transfer.route
        )

    def sequences(self, rows: Sequence[tuple[int, Kind]]) -> dict[str, list[int]]:
        """The fields of Net that are about channels."""
        own, shared, occupancy, latency = [], [], [], []
        users: list[list[int]] = [[] for _ in range(max(self._num_users, default=-1) + 1)]
        for index, row in enumerate(rows):
            transfer = self._routes.get(row)
            route = transfer.route if transfer else None
            channel = route.channel if route else -1
            is_shared = self._num_users[channel] > 1
            own.append(-1 if is_shared else channel)
            shared.append(channel if is_shared else -1)
            occupancy.append(transfer.occupancy_ns if transfer else 0)
            latency.append(route.latency_ns if route else 0)
            if is_shared:
                users[channel].append(index)
        return {
            "own": own,
            "shared": shared,
            "occupancy": occupancy,
            "latency": latency,
            "user_first": _offsets([len(rows) for rows in users]),
            "users": [row for rows in users for row in rows],
        }


def _offsets(sizes: Sequence[int]) -> list[int]:
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + size)
    return offsets


def _duration(problem: Problem, costs: Sequence[StageCosts], stage: int, kind: Kind) -> int:
    if kind is Kind.W and problem.is_fused(stage):
        return -1
    return split_durations(problem, costs, stage)[kind]


def _freed(problem: Problem, costs: Sequence[StageCosts], stage: int, kind: Kind) -> int:
    if not problem.is_fused(stage):
        return costs[stage].released_bytes(kind)
    return costs[stage].released_bytes(Kind.B) if kind is Kind.I else 0


def _reserves(problem: Problem, costs: Sequence[StageCosts]) -> list[int]:
    """Activations of the rank's later stages, per stage."""
    reserves = [0] * len(costs)
    for stages in problem.stages_of_rank:
        later = 0
        for stage in reversed(stages):
            reserves[stage] = later
            later += costs[stage].activation_bytes
    return reserves


def _limit(problem: Problem, rank: int) -> int:
    limit = activation_limit_bytes(problem, rank)
    return NEVER if limit is None else limit


def _target(num_stages: int, stage: int, kind: Kind) -> int:
    """The row that waits for what an op of this row leaves behind."""
    if kind is Kind.F:
        return 3 * (stage + 1) if stage + 1 < num_stages else 3 * stage + 1
    return 3 * (stage - 1) + 1 if kind is Kind.I and stage else -1


def _gates(problem: Problem, costs: Sequence[StageCosts]) -> list[int]:
    """Per stage, when its gather is done; a rank gathers for one stage after another."""
    gates = [0] * len(costs)
    for stages in problem.stages_of_rank:
        done = 0
        for stage in stages:
            if costs[stage].gather_ns:
                gates[stage] = done = done + costs[stage].gather_ns
    return gates
