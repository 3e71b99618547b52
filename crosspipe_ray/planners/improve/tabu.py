"""The inner loop of `improve`: the best move of some, and for a while none that turns it back.

With what it uses of `neighbourhood`, `moves` and `longest_paths` it runs as plain Python on lists
and as machine code on arrays (`crosspipe_ray.compiled`).
"""

from __future__ import annotations

from crosspipe_ray.compiled import NEVER, Numbers
from crosspipe_ray.planners.improve.disjunctive import (
    BEST_NS,
    FOUND_AT,
    MAKESPAN_NS,
    NUM_FORBIDDEN,
    NUM_STEPS,
    Jobs,
    Run,
)
from crosspipe_ray.planners.improve.longest_paths import begin
from crosspipe_ray.planners.improve.moves import estimate, move, rearrange
from crosspipe_ray.planners.improve.neighbourhood import (
    critical_blocks,
    drawn_partner,
    drawn_place,
    lot,
    reach,
)

_NUM_DRAWN = 24  # nodes of a critical path whose moves are estimated
_TENURE = 8  # steps, up to twice that, for which what was turned round stays so
_PATIENCE = 10_000  # steps without a new best before the search goes back to it


def climb(jobs: Jobs, run: Run, num_steps: int, enough_ns: int) -> None:
    """So many steps, or fewer if the best order is good enough."""
    for _ in range(num_steps):
        if run.numbers[BEST_NS] <= enough_ns:
            return
        step(jobs, run)


def step(jobs: Jobs, run: Run) -> None:
    """One move; back to the best order after many in vain."""
    numbers = run.numbers
    numbers[NUM_STEPS] += 1
    if numbers[NUM_STEPS] - numbers[FOUND_AT] > _PATIENCE:
        copy(run.best, run.sequence)
        copy(run.best_order, run.order)
        begin(jobs, run)
        numbers[FOUND_AT] = numbers[NUM_STEPS]
    source, target, is_exchange = chosen(jobs, run)
    if source == target or not move(jobs, run, source, target, is_exchange):
        return
    forbid(jobs, run, source, target, is_exchange)
    if numbers[MAKESPAN_NS] < numbers[BEST_NS]:
        remember(run)


def chosen(jobs: Jobs, run: Run) -> tuple[int, int, bool]:
    """The move with the best estimate of those drawn; equals by lot.

    Returns:
        The place of a node, the place that it goes to, and whether the node there comes in its
        stead.
    """
    best, best_ns, best_lot = (0, 0, False), NEVER, 0
    num_blocks = critical_blocks(jobs, run)
    for _ in range(_NUM_DRAWN if num_blocks else 0):
        block = lot(run, num_blocks)
        low, high = run.blocks[2 * block], run.blocks[2 * block + 1]
        source = drawn_place(run, low, high)
        first, last = reach(jobs, run, source, low), reach(jobs, run, source, high)
        ends, neighbours = (first, last), (max(first, source - 1), min(last, source + 1))
        targets = *ends, *neighbours, drawn_partner(jobs, run, source)
        for which in range(5):
            target, is_exchange = targets[which], which == 4
            if target == source or (1 < which < 4 and target == targets[which - 2]):
                continue
            length = estimate(jobs, run, source, target, is_exchange)
            drawn = lot(run, 1 << 30)
            is_better = length < best_ns or (length == best_ns < NEVER and drawn < best_lot)
            if is_better and (
                length < run.numbers[BEST_NS] or not is_forbidden(run, source, target, is_exchange)
            ):
                best, best_ns, best_lot = (source, target, is_exchange), length, drawn
    return best


def forbid(jobs: Jobs, run: Run, source: int, target: int, is_exchange: bool) -> None:
    """What was turned round stays so for a while."""
    until = run.numbers[NUM_STEPS] + _TENURE + lot(run, _TENURE)
    if is_exchange:
        rearrange(jobs, run, target, source, is_exchange)
        run.forbidden[pair(run.scratch[0], run.scratch[abs(target - source)])] = until
        return
    node, towards = run.sequence[target], 1 if source > target else -1
    for place in range(target + towards, source + towards, towards):
        other = run.sequence[place]
        if towards > 0:  # the node was after the other
            run.forbidden[pair(other, node)] = until
        else:
            run.forbidden[pair(node, other)] = until


def is_forbidden(run: Run, source: int, target: int, is_exchange: bool) -> bool:
    """Whether the move that stands in ``scratch`` turns back what was turned round lately."""
    if is_exchange:
        entry = pair(run.scratch[0], run.scratch[abs(target - source)])
        return run.forbidden[entry] > run.numbers[NUM_STEPS]
    node, towards = run.sequence[source], 1 if target > source else -1
    for place in range(source + towards, target + towards, towards):
        other = run.sequence[place]
        entry = pair(other, node) if towards > 0 else pair(node, other)
        if run.forbidden[entry] > run.numbers[NUM_STEPS]:
            return True
    return False


def pair(first: int, second: int) -> int:
    """The entry of ``forbidden`` that says whether the first may come before the second."""
    return (first * 8191 + second) % NUM_FORBIDDEN


def remember(run: Run) -> None:
    """The order at hand is the best one."""
    run.numbers[BEST_NS] = run.numbers[MAKESPAN_NS]
    run.numbers[FOUND_AT] = run.numbers[NUM_STEPS]
    copy(run.sequence, run.best)
    copy(run.order, run.best_order)


def copy(source: Numbers, target: Numbers) -> None:
    """All entries."""
    for index in range(len(source)):
        target[index] = source[index]
