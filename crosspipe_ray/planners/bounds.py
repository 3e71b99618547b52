"""What no schedule can beat: lower bounds on the makespan, and how far from the end each op is.

A head is the earliest possible start of an op, a tail the least time from its start to the end of
the step; both follow data dependencies, messages on free channels and the work that the same rank
must do before or after. Any set of ops that shares a rank, or any set of messages that shares a
channel, needs at least its least head, all its work, and its least tail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from crosspipe_ray.costs import StageCosts, activation_limit_bytes, stage_costs
from crosspipe_ray.ops import Kind
from crosspipe_ray.problem import Problem

_KINDS_TOGETHER = (
    (Kind.F, Kind.I, Kind.W),
    (Kind.F, Kind.I),
    (Kind.I, Kind.W),
    (Kind.F,),
    (Kind.I,),
)


def lower_bound_ns(problem: Problem) -> int:
    """The largest of the chain, rank-load and channel-load bounds, in nanoseconds."""
    costs = stage_costs(problem)
    heads, tails = _Chain.heads(problem, costs), _Chain.tails(problem, costs)
    bounds = [
        heads.of(stage, kind) + tails.of(stage, kind)
        for stage in range(len(costs))
        for kind in (Kind.F, Kind.I)
    ]
    bounds += [cost.gather_ns + cost.reduce_ns for cost in costs]
    bounds += _rank_loads(problem, costs, heads, tails)
    bounds += _channel_loads(problem, costs, heads, tails)
    return max(bounds)


def tail_table_ns(problem: Problem, costs: Sequence[StageCosts]) -> dict[Kind, list[list[int]]]:
    """Least time from the start of an op to the end of the step, by kind, stage and microbatch.

    The later microbatches of the stage count too: F of microbatch m has M - m of F, I and W still
    before it. Where memory for only L microbatches is there, F of m + L also waits for W of m.
    """
    num_microbatches, num_stages = problem.num_microbatches, len(costs)
    tails = {
        kind: [[0] * (num_microbatches + 1) for _ in costs] for kind in (Kind.F, Kind.I, Kind.W)
    }
    windows = [_window(problem, costs, stage) for stage in range(num_stages)]
    for m in range(num_microbatches - 1, -1, -1):
        for stage, cost in enumerate(costs):
            _backward_tails(problem, tails, stage, m, cost, windows[stage])
        for stage in range(num_stages - 1, -1, -1):
            _forward_tail(problem, tails, stage, m, costs[stage])
    return tails


def _backward_tails(
    problem: Problem,
    tails: dict[Kind, list[list[int]]],
    stage: int,
    m: int,
    cost: StageCosts,
    window: int,
) -> None:
    backward, weight = _split_durations(problem, stage, cost)
    blocked = tails[Kind.F][stage][m + window] if m + window < problem.num_microbatches else 0
    tails[Kind.W][stage][m] = weight + max(tails[Kind.W][stage][m + 1], blocked, cost.reduce_ns)
    left = problem.num_microbatches - m
    followers = [tails[Kind.W][stage][m], backward * (left - 1) + weight * left]
    if cost.gradient:
        followers.append(cost.gradient.delay_ns + tails[Kind.I][stage - 1][m])
    tails[Kind.I][stage][m] = backward + max(followers)


def _forward_tail(
    problem: Problem, tails: dict[Kind, list[list[int]]], stage: int, m: int, cost: StageCosts
) -> None:
    forward = cost.duration_ns[Kind.F]
    left = problem.num_microbatches - m
    followers = [
        forward * (left - 1) + sum(_split_durations(problem, stage, cost)) * left,
        tails[Kind.I][stage][m],
    ]
    if cost.output:
        followers.append(cost.output.delay_ns + tails[Kind.F][stage + 1][m])
    tails[Kind.F][stage][m] = forward + max(followers)


def _window(problem: Problem, costs: Sequence[StageCosts], stage: int) -> int:
    """Microbatches that a stage can hold at most.

    All of them, where its rank has no limit or holds several stages.
    """
    rank = costs[stage].rank
    limit, size = activation_limit_bytes(problem, rank), costs[stage].activation_bytes
    if limit is None or not size or len(problem.stages_of_rank[rank]) > 1:
        return problem.num_microbatches
    return max(1, limit // size)


def _split_durations(problem: Problem, stage: int, cost: StageCosts) -> tuple[int, int]:
    """Least time of I and W, or of B and nothing.

    Any stage may run B, which pays the rank's op overhead once.
    """
    _, backward, weight, both = cost.duration_ns
    return (both, 0) if problem.is_fused(stage) else (backward, min(weight, both - backward))


class _Chain:
    """Heads or tails of microbatch chains by (stage, kind); B counts as I with an empty W."""

    def __init__(self, values: dict[tuple[int, Kind], int]) -> None:
        self._values = values

    def of(self, stage: int, kind: Kind) -> int:
        return self._values[stage, kind]

    @classmethod
    def heads(cls, problem: Problem, costs: Sequence[StageCosts]) -> _Chain:
        values: dict[tuple[int, Kind], int] = {}
        for stage, cost in enumerate(costs):
            before = costs[stage - 1] if stage else None
            arrived = (
                values[stage - 1, Kind.F] + before.duration_ns[Kind.F] + _delay(before, Kind.F)
                if before
                else 0
            )
            values[stage, Kind.F] = max(cost.gather_ns, arrived)
        for stage in range(len(costs) - 1, -1, -1):
            after = costs[stage + 1] if stage + 1 < len(costs) else None
            own = values[stage, Kind.F] + costs[stage].duration_ns[Kind.F]
            if after:
                own = max(
                    own,
                    values[stage + 1, Kind.I]
                    + _split_durations(problem, stage + 1, after)[0]
                    + _delay(after, Kind.I),
                )
            values[stage, Kind.I] = own
            values[stage, Kind.W] = own + _split_durations(problem, stage, costs[stage])[0]
        return cls(values)

    @classmethod
    def tails(cls, problem: Problem, costs: Sequence[StageCosts]) -> _Chain:
        """From the start of an op of the last microbatch."""
        values: dict[tuple[int, Kind], int] = {}
        for stage, cost in enumerate(costs):
            backward, weight = _split_durations(problem, stage, cost)
            values[stage, Kind.W] = weight + cost.reduce_ns
            after = values[stage, Kind.W]
            if stage:
                after = max(after, _delay(cost, Kind.I) + values[stage - 1, Kind.I])
            values[stage, Kind.I] = backward + after
        for stage in range(len(costs) - 1, -1, -1):
            after = values[stage, Kind.I]
            if stage + 1 < len(costs):
                after = max(after, _delay(costs[stage], Kind.F) + values[stage + 1, Kind.F])
            values[stage, Kind.F] = costs[stage].duration_ns[Kind.F] + after
        return cls(values)


def _delay(cost: StageCosts, kind: Kind) -> int:
    transfer = cost.transfer(kind)
    return transfer.delay_ns if transfer else 0


def _durations(problem: Problem, stage: int, cost: StageCosts) -> dict[Kind, int]:
    backward, weight = _split_durations(problem, stage, cost)
    return {Kind.F: cost.duration_ns[Kind.F], Kind.I: backward, Kind.W: weight}


def _rank_loads(
    problem: Problem, costs: Sequence[StageCosts], heads: _Chain, tails: _Chain
) -> list[int]:
    """For sets of kinds on one rank: least head, all work, least rest of the step after an op."""
    bounds = []
    for stages in problem.stages_of_rank:
        durations = {stage: _durations(problem, stage, costs[stage]) for stage in stages}
        for kinds in _KINDS_TOGETHER:
            ops = [(stage, kind) for stage in stages for kind in kinds]
            work = sum(durations[stage][kind] for stage, kind in ops) * problem.num_microbatches
            rest = min(tails.of(stage, kind) - durations[stage][kind] for stage, kind in ops)
            bounds.append(min(heads.of(stage, kind) for stage, kind in ops) + work + rest)
    return bounds


def _channel_loads(
    problem: Problem, costs: Sequence[StageCosts], heads: _Chain, tails: _Chain
) -> list[int]:
    """Per channel: the first message's head, all occupancy, and what follows the last message."""
    users: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for stage, cost in enumerate(costs):
        durations = _durations(problem, stage, cost)
        for kind, receiver in ((Kind.F, stage + 1), (Kind.I, stage - 1)):
            transfer = cost.transfer(kind)
            if transfer and transfer.route:
                ready = heads.of(stage, kind) + durations[kind]
                rest = transfer.route.latency_ns + tails.of(receiver, kind)
                users[transfer.route.channel].append((ready, transfer.occupancy_ns, rest))
    return [
        min(ready for ready, _, _ in messages)
        + sum(occupancy for _, occupancy, _ in messages) * problem.num_microbatches
        + min(rest for _, _, rest in messages)
        for messages in users.values()
    ]
