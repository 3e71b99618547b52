"""A problem as the flat sequences that `kernel` works on, and what it leaves as an order again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from crosspipe_ray.columns import Ints, Ops
from crosspipe_ray.compiled import NEVER
from crosspipe_ray.costs import StageCosts, activation_limit_bytes
from crosspipe_ray.ops import Kind, op_code
from crosspipe_ray.planners.bounds.relaxation import gathered_ns, offsets, split_durations
from crosspipe_ray.planners.greedy.kernel import Net, State
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule

_KINDS = (Kind.F, Kind.I, Kind.W)


def net_of(problem: Problem, costs: Sequence[StageCosts]) -> Net:
    """The problem as lists."""
    rows = [(stage, kind) for stage in range(len(costs)) for kind in _KINDS]
    return Net(
        duration=[split_durations(problem, costs, stage)[kind] for stage, kind in rows],
        after=[-1 if kind is Kind.F else row - 1 for row, (_, kind) in enumerate(rows)],
        taken=[costs[stage].activation_bytes * (kind is Kind.F) for stage, kind in rows],
        freed=[_freed(problem, costs, *row) for row in rows],
        closing=[3 * stage + 1 for stage, _ in rows],
        target=[_target(len(costs), *row) for row in rows],
        gate=gathered_ns(problem, costs),
        finish=[costs[stage].reduce_ns for stage, _ in rows],
        **_rank_fields(problem, costs),
        **_channel_fields(costs, rows, len(problem.ranks)),
    )


def mirrored(problem: Problem, costs: Sequence[StageCosts], net: Net) -> Net:
    """The same problem with time running backwards: W opens, F closes, messages go the other way.

    It serves to find out how long the end of the step really takes, so it need not be exact: a
    link's latency comes after the occupancy here too.
    """
    num_rows = len(net.duration)
    sender = [-1] * num_rows
    for row, target in enumerate(net.target):
        if target >= 0:
            sender[target] = row
    is_last = [
        row % 3 == 2 or (row % 3 == 1 and problem.is_fused(row // 3)) for row in range(num_rows)
    ]
    opening = _opening_rows(problem)
    return net._replace(
        after=[opening.get(row, row + 1) for row in range(num_rows)],
        taken=[costs[row // 3].activation_bytes * is_last[row] for row in range(num_rows)],
        freed=[costs[row // 3].activation_bytes * (row % 3 == 0) for row in range(num_rows)],
        target=sender,
        own=[net.own[row] if row >= 0 else -1 for row in sender],
        shared=[net.shared[row] if row >= 0 else -1 for row in sender],
        occupancy=[net.occupancy[row] if row >= 0 else 0 for row in sender],
        latency=[net.latency[row] if row >= 0 else 0 for row in sender],
        users=[net.target[row] for row in net.users],
        gate=[cost.reduce_ns * (kind is Kind.W) for cost in costs for kind in _KINDS],
        finish=[0] * num_rows,
    )


def _opening_rows(problem: Problem) -> dict[int, int]:
    """Rows that open a microbatch in the mirror image, and what they come after.

    On a rank with several stages, the later ones open it after the earlier ones, so that they do
    not fill the memory that these need.
    """
    opening = {}
    for stages in problem.stages_of_rank:
        previous = -1
        for stage in stages:
            row = 3 * stage + (1 if problem.is_fused(stage) else 2)
            opening[row] = previous
            previous = row
    return opening


def fresh_state(net: Net, num_microbatches: int) -> State:
    """Nothing has run; only ops that wait for no message have their inputs. In arrays."""
    num_rows, num_ranks = len(net.duration), len(net.limit)
    num_shared, num_alone = len(net.user_first) - 1, sum(channel >= 0 for channel in net.own)
    num_ops = num_rows * num_microbatches
    num_sends = sum(channel >= 0 for channel in net.shared) * num_microbatches
    waiting = np.zeros(num_rows, dtype=bool)
    waiting[[target for target in net.target if target >= 0]] = True
    return State(
        ready=np.repeat(np.where(waiting, NEVER, 0), num_microbatches),
        starts=_zeros(num_ops),
        done=_zeros(num_rows),
        sent=_zeros(num_rows),
        held=_zeros(num_ranks),
        free=_zeros(num_shared + num_ranks + num_alone),
        wake=_tree([NEVER] * num_shared + [0] * num_ranks),
        order=_zeros(num_ops),
        length=_zeros(num_ranks),
        sends=_zeros(num_sends),
        num_sends=_zeros(1),
    )


def _zeros(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)


def _tree(leaves: Sequence[int]) -> Ints:
    """A tree of minima, from 1 on; the leaves are its second half, as many as a power of two."""
    num_leaves = 1 << (len(leaves) - 1).bit_length()
    tree = np.full(2 * num_leaves, NEVER)
    tree[num_leaves : num_leaves + len(leaves)] = leaves
    for node in range(num_leaves - 1, 0, -1):
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
    return tree


def order_of(problem: Problem, net: Net, state: State) -> Order:
    """What a run of the kernel left behind, in lists or arrays."""
    order = np.asarray(state.order, dtype=np.int64)
    begins = [problem.num_microbatches * first for first in net.first[:-1]]
    ops = [
        order[begin : begin + length] for begin, length in zip(begins, state.length, strict=True)
    ]
    schedule = Schedule.of_codes(op_codes(problem, np.concatenate(ops)), list(state.length))
    return Order(schedule, _sends(net, state, problem.num_microbatches))


def op_codes(problem: Problem, ops: Ints) -> Ints:
    """Codes of ops that the kernel numbers by row and microbatch; a fused stage's I is a B."""
    rows, microbatches = np.divmod(ops, problem.num_microbatches)
    stages, kinds = np.divmod(rows, 3)
    is_fused = np.array([problem.is_fused(stage) for stage in range(len(problem.stages))])
    kinds[is_fused[stages] & (kinds == Kind.I)] = Kind.B
    return op_code(stages, kinds, microbatches)


def send_codes(num_microbatches: int, ops: Ints) -> Ints:
    """Codes of the SEND ops of the kernel's ops."""
    rows, microbatches = np.divmod(ops, num_microbatches)
    stages, kinds = np.divmod(rows, 3)
    return op_code(stages, np.where(kinds == Kind.F, Kind.SEND_F, Kind.SEND_B), microbatches)


def _sends(net: Net, state: State, num_microbatches: int) -> Ops | None:
    """All timed messages; None where no channel is shared."""
    shared = np.asarray(state.sends[: state.num_sends[0]], dtype=np.int64)
    if not len(shared):
        return None
    alone = np.flatnonzero(np.asarray(net.own) >= 0)
    ops = np.add.outer(alone * num_microbatches, np.arange(num_microbatches)).ravel()
    return Ops(send_codes(num_microbatches, np.concatenate([shared, ops])))


def _channel_fields(
    costs: Sequence[StageCosts], rows: Sequence[tuple[int, Kind]], num_ranks: int
) -> dict[str, list[int]]:
    """The fields of Net that are about channels: machines before the ranks, if shared, or after."""
    transfers = [costs[stage].transfer(kind) for stage, kind in rows]
    routes = [transfer.route if transfer else None for transfer in transfers]
    users: dict[int, list[int]] = defaultdict(list)
    for row, route in enumerate(routes):
        if route:
            users[route.channel].append(row)
    shared = [held for held in users.values() if len(held) > 1]
    alone = [held[0] for held in users.values() if len(held) == 1]
    machine_of = {row: machine for machine, held in enumerate(shared) for row in held}
    own_of = {row: machine for machine, row in enumerate(alone, len(shared) + num_ranks)}
    return {
        "own": [own_of.get(row, -1) for row in range(len(rows))],
        "shared": [machine_of.get(row, -1) for row in range(len(rows))],
        "occupancy": [transfer.occupancy_ns if transfer else 0 for transfer in transfers],
        "latency": [route.latency_ns if route else 0 for route in routes],
        "user_first": offsets(map(len, shared)),
        "users": [row for held in shared for row in held],
    }


def _rank_fields(problem: Problem, costs: Sequence[StageCosts]) -> dict[str, list[int]]:
    """The fields of Net that are about ranks; later stages come first, a fused one has no W."""
    held = [
        [
            3 * stage + kind
            for stage in reversed(stages)
            for kind in _KINDS
            if not (kind is Kind.W and problem.is_fused(stage))
        ]
        for stages in problem.stages_of_rank
    ]
    reserves = _reserves(problem, costs)
    return {
        "first": offsets([len(rows) for rows in held]),
        "rows": [row for rows in held for row in rows],
        "rank": [rank for rank in problem.rank_of_stage for _ in _KINDS],
        "reserve": [reserve for reserve in reserves for _ in _KINDS],
        "limit": [_limit(problem, rank) for rank in range(len(problem.ranks))],
    }


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
    """The row at another stage that waits for the message of this row."""
    if kind is Kind.F and stage + 1 < num_stages:
        return 3 * (stage + 1)
    return 3 * (stage - 1) + 1 if kind is Kind.I and stage else -1
