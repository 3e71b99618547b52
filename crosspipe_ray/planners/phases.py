"""The paper's greedy (CrossPipe, section 4.2, Algorithm 1), for comparison: it chooses by phase.

The rank that can start an op the earliest goes next. Of the ops that are ready then it takes F
while it warms up, which is until the first I is ready; F and I in turn while it is steady; I before
W once its F's are done; and W where it is memory that forbids F, or where neither F nor I can
start. Of several stages, the one that is further on its way goes first. A message takes the first
window that its link has free. Ops are whole: the paper's parts of ops are not in the plan format
yet.
"""

from __future__ import annotations

from crosspipe_ray.compiled import as_lists
from crosspipe_ray.costs import check_memory_suffices, stage_costs
from crosspipe_ray.planners.kernel import Choice, Net, State, run
from crosspipe_ray.planners.network import Order, fresh_state, net_of, order_of
from crosspipe_ray.problem import Problem

_F, _I, _W = range(3)


def crosspipe_greedy(problem: Problem) -> Order:
    """One pass; it needs no seed.

    Raises:
        InfeasibleError: a rank has less memory than one microbatch needs.
    """
    check_memory_suffices(problem)
    net = net_of(problem, stage_costs(problem))
    state = as_lists(fresh_state(net, problem.num_microbatches))
    equal = Choice([0] * len(state.ready), [], [], 0)
    run(net, state, equal, problem.num_microbatches, _by_phase)
    return Order(order_of(problem, net, state).schedule)  # links serve by ready time


def _by_phase(net: Net, state: State, _: Choice, num_microbatches: int, rank: int, now: int) -> int:
    """The row whose next op starts now; -1: none is ready."""
    ready: dict[int, int] = {}  # by kind
    for row in net.rows[net.first[rank] : net.first[rank + 1]]:
        if _is_ready(net, state, num_microbatches, rank, row, now):
            kind = row % 3
            if kind not in ready or (kind == _I and row < ready[kind]):
                ready[kind] = row
    wanted = _preference(net, state, num_microbatches, rank, can_turn=_I in ready)
    return next((ready[kind] for kind in wanted if kind in ready), -1)


def _is_ready(net: Net, state: State, num_microbatches: int, rank: int, row: int, now: int) -> bool:
    """Whether the row's next op can start."""
    microbatch = state.done[row]
    if microbatch == num_microbatches:
        return False
    if net.after[row] >= 0 and state.done[net.after[row]] <= microbatch:
        return False
    if net.taken[row] and state.held[rank] + net.taken[row] + net.reserve[row] > net.limit[rank]:
        return False
    return max(state.ready[row * num_microbatches + microbatch], net.gate[row]) <= now


def _preference(
    net: Net, state: State, num_microbatches: int, rank: int, *, can_turn: bool
) -> tuple[int, ...]:
    """Kinds in the order in which they are wanted; ``can_turn``: an I is ready."""
    begin = num_microbatches * net.first[rank]
    done = state.order[begin : begin + state.length[rank]]
    kinds = (op // num_microbatches % 3 for op in reversed(done))
    last = next((kind for kind in kinds if kind != _W), _F)
    rows = net.rows[net.first[rank] : net.first[rank + 1]]
    is_warming_up = not can_turn and not any(state.done[row] for row in rows if row % 3 == _I)
    if last != _I and not is_warming_up:
        return _I, _F, _W
    lacks_memory = any(
        net.taken[row]
        and state.done[row] < num_microbatches
        and state.held[rank] + net.taken[row] + net.reserve[row] > net.limit[rank]
        for row in rows
    )
    return (_W, _I, _F) if lacks_memory else (_F, _I, _W)
