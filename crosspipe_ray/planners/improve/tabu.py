"""The inner loop of `improve`, on flat integer sequences: times of an order, and moves that help.

Ranks and channels are machines, each with a part of ``Run.sequence``. A node starts once the one
before it on its machine has ended, and once its one input is there: an op's message, or a message's
op. Memory is a matter of a rank's part alone, as a rank runs one op at a time. A move takes one
node to another place of its machine; only what comes later or earlier is worked out anew.

A rank of several stages that is idle because its memory is full has filled it with the wrong F's.
None of them may come earlier, and the critical path begins after them; but one on it may change
places with one of another stage. So such exchanges are tried too, and those of W's.

Sequences per node have one entry more than there are nodes: the neighbour of a node without one.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

from crosspipe_ray.compiled import NEVER
from crosspipe_ray.planners.improve.disjunctive import (
    BEST_NS,
    FOUND_AT,
    LOT,
    MAKESPAN_NS,
    NUM_FORBIDDEN,
    NUM_STEPS,
    Jobs,
    Run,
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


def remember(run: Run) -> None:
    """The order at hand is the best one."""
    run.numbers[BEST_NS] = run.numbers[MAKESPAN_NS]
    run.numbers[FOUND_AT] = run.numbers[NUM_STEPS]
    copy(run.sequence, run.best)
    copy(run.order, run.best_order)


def copy(source: Sequence[int], target: MutableSequence[int]) -> None:
    """All entries."""
    for index in range(len(source)):
        target[index] = source[index]


def lot(run: Run, below: int) -> int:
    """A random number (Park and Miller 1988)."""
    run.numbers[LOT] = run.numbers[LOT] * 48271 % 2147483647
    return run.numbers[LOT] % below


def pair(first: int, second: int) -> int:
    """The entry of ``forbidden`` that says whether the first may come before the second."""
    return (first * 8191 + second) % NUM_FORBIDDEN


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


def drawn_place(run: Run, low: int, high: int) -> int:
    """A node of a block; those at its ends as often as all the others."""
    if lot(run, 2):
        return low + lot(run, high - low + 1)
    which = lot(run, 4)
    if which < 2:
        return low if which else high
    return min(high, low + 1) if which == 2 else max(low, high - 1)


def drawn_partner(jobs: Jobs, run: Run, source: int) -> int:
    """Where another stage takes memory, or gives it back, as the node here does; here: nowhere."""
    node = run.sequence[source]
    machine = jobs.machine[node]
    if not jobs.is_mixed[machine] or jobs.taken[node] == jobs.freed[node]:
        return source
    begins = jobs.first[machine]
    place = begins + lot(run, jobs.first[machine + 1] - begins)
    other = run.sequence[place]
    takes = (jobs.taken[node] > 0) == (jobs.taken[other] > 0)
    gives = (jobs.freed[node] > 0) == (jobs.freed[other] > 0)
    is_of_another = jobs.row[node] // 3 != jobs.row[other] // 3
    return place if takes and gives and is_of_another else source


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


def critical_blocks(jobs: Jobs, run: Run) -> int:
    """First and last places of the blocks of a longest path, drawn by lot, go to ``blocks``."""
    node, none = last_node(jobs, run), len(run.place) - 1
    length, num_blocks = 1, 0
    while node != none:
        before, previous = jobs.before[node], run.previous[node]
        start = run.ends[node] - jobs.duration[node]
        is_by_job = before != none and run.ends[before] + jobs.lag[node] == start
        is_by_machine = previous != none and run.ends[previous] == start
        if is_by_machine and not (is_by_job and lot(run, 2)):
            node, length = previous, length + 1
            continue
        if length > 1:
            low = run.place[node]
            run.blocks[2 * num_blocks] = low
            run.blocks[2 * num_blocks + 1] = low + length - 1
            num_blocks += 1
        node, length = before if is_by_job else none, 1
    return num_blocks


def last_node(jobs: Jobs, run: Run) -> int:
    """One of the nodes that end the step, by lot."""
    found, num_found = len(run.place) - 1, 0
    num_machines = len(jobs.first) - 1
    for index in range(num_machines + len(jobs.closing)):
        if index < num_machines:
            if jobs.first[index] == jobs.first[index + 1]:
                continue
            node = run.sequence[jobs.first[index + 1] - 1]
        else:
            node = jobs.closing[index - num_machines]
        if run.ends[node] + jobs.finish[node] == run.numbers[MAKESPAN_NS]:
            num_found += 1
            if lot(run, num_found) == 0:
                found = node
    return found


def reach(jobs: Jobs, run: Run, source: int, end: int) -> int:
    """How far towards the end of its block a node may go."""
    node, towards = run.sequence[source], 1 if end > source else -1
    for place in range(source, end, towards):
        other = run.sequence[place + towards]
        first, second = (node, other) if towards > 0 else (other, node)
        if not may_turn(jobs, run, first, second):
            return place
    return end


def may_turn(jobs: Jobs, run: Run, first: int, second: int) -> bool:
    """Whether the second node of a block may come before the first, as far as one sees."""
    none = len(run.place) - 1
    if jobs.row[first] == jobs.row[second] or jobs.needed[second] == first:
        return False
    before, after = jobs.before[second], jobs.after[first]
    if before == none or after == none:
        return True
    # were there a path from the first through ``after`` to the second, it would end so late
    return before != first and run.ends[after] > run.ends[before]


def estimate(jobs: Jobs, run: Run, source: int, target: int, is_exchange: bool) -> int:
    """The longest path through the nodes that change places; NEVER where that cannot be."""
    if not rearrange(jobs, run, source, target, is_exchange):
        return NEVER
    low, high = min(source, target), max(source, target)
    size, window, ends = high - low + 1, run.scratch, run.ends
    first, last = run.sequence[low], run.sequence[high]
    limit, held = jobs.limit[jobs.machine[first]], run.held[first]
    end = ends[run.previous[first]]
    for index in range(size):
        node = window[index]
        held += jobs.taken[node]
        if held > limit:
            return NEVER
        held -= jobs.freed[node]
        start = max(end, jobs.gate[node], ends[jobs.before[node]] + jobs.lag[node])
        end = start + jobs.duration[node]
        run.other_scratch[index] = end
    rest, longest = run.rests[run.following[last]], 0
    for index in range(size - 1, -1, -1):
        node = window[index]
        after = jobs.after[node]
        rest = max(rest, jobs.finish[node], run.rests[after] + jobs.lag[after])
        longest = max(longest, run.other_scratch[index] + rest)
        rest += jobs.duration[node]
    return longest


def rearrange(jobs: Jobs, run: Run, source: int, target: int, is_exchange: bool) -> bool:
    """Writes to ``scratch`` what stands from one place to the other after a move.

    Returns:
        False: an op would come before one of its rank that it needs.
    """
    low, size = min(source, target), abs(source - target) + 1
    if is_exchange:
        return exchange(jobs, run, low, size)
    for index in range(size):
        if target < source:
            node = run.sequence[low + index - 1 if index else source]
        else:
            node = run.sequence[low + index + 1 if index + 1 < size else source]
        run.scratch[index] = node
    return True


def exchange(jobs: Jobs, run: Run, low: int, size: int) -> bool:
    """Writes to ``scratch`` so many nodes, the first and the last of them exchanged.

    The microbatches of both rows stay in order: it is the rows that change places.
    """
    window, sequence = run.scratch, run.sequence
    later, earlier = sequence[low], sequence[low + size - 1]  # nodes that wait for a place
    first_row, last_row = jobs.row[later], jobs.row[earlier]
    for index in range(1, size):
        node = window[index] = sequence[low + index]
        if jobs.needed[node] == later:
            return False
        if jobs.row[node] == first_row:
            window[index], later = later, node
    for index in range(size - 2, -1, -1):
        node = sequence[low + index]
        if jobs.needed[earlier] == node:
            return False
        if jobs.row[node] == last_row:
            window[index], earlier = earlier, node
    window[0], window[size - 1] = earlier, later
    return True


def begin(jobs: Jobs, run: Run) -> bool:
    """Times of the order in ``sequence``; False: it waits for itself."""
    for machine in range(len(jobs.first) - 1):
        link(jobs, run, machine, jobs.first[machine], jobs.first[machine + 1])
    for position in range(len(run.order)):
        run.position[run.order[position]] = position
    return evaluate(jobs, run, 0, len(run.order) - 1)


def move(jobs: Jobs, run: Run, source: int, target: int, is_exchange: bool) -> bool:
    """Makes a move, or leaves all as it is where ops would wait for each other for ever."""
    low, high = min(source, target), max(source, target)
    begins, ends = run.position[run.sequence[low]], run.position[run.sequence[high]]
    turn(jobs, run, source, target, is_exchange)
    if evaluate(jobs, run, begins, ends):
        return True
    turn(jobs, run, target, source, is_exchange)
    return False


def turn(jobs: Jobs, run: Run, source: int, target: int, is_exchange: bool) -> None:
    """A move without its times; from target to source it is turned back."""
    low, high = min(source, target), max(source, target)
    rearrange(jobs, run, source, target, is_exchange)
    for place in range(low, high + 1):
        run.sequence[place] = run.scratch[place - low]
    machine = jobs.machine[run.sequence[low]]
    first, end = jobs.first[machine], jobs.first[machine + 1]
    link(jobs, run, machine, max(first, low - 1), min(end, high + 2))


def link(jobs: Jobs, run: Run, machine: int, low: int, high: int) -> None:
    """Places, neighbours and memory of a part of a machine's nodes."""
    none = len(run.place) - 1
    for place in range(low, high):
        node = run.sequence[place]
        run.place[node] = place
        run.previous[node], run.held[node] = none, 0
        if place > jobs.first[machine]:
            before = run.sequence[place - 1]
            run.previous[node] = before
            run.held[node] = run.held[before] + jobs.taken[before] - jobs.freed[before]
        is_last = place + 1 == jobs.first[machine + 1]
        run.following[node] = none if is_last else run.sequence[place + 1]


def evaluate(jobs: Jobs, run: Run, low: int, high: int) -> bool:
    """Brings the times up to date; only between two places of the old order new arcs may run.

    Returns:
        False: there is a cycle, and no time has changed.
    """
    if num_sorted(jobs, run, low, high) <= high - low:
        return False
    for position in range(low, high + 1):
        node = run.scratch[position - low]
        run.order[position], run.position[node] = node, position
    run_forwards(jobs, run, low)
    run_backwards(jobs, run, high)
    longest = 0
    for machine in range(len(jobs.first) - 1):
        if jobs.first[machine] < jobs.first[machine + 1]:
            node = run.sequence[jobs.first[machine + 1] - 1]
            longest = max(longest, run.ends[node] + jobs.finish[node])
    for index in range(len(jobs.closing)):
        longest = max(longest, run.ends[jobs.closing[index]] + jobs.finish[jobs.closing[index]])
    run.numbers[MAKESPAN_NS] = longest
    return True


def num_sorted(jobs: Jobs, run: Run, low: int, high: int) -> int:
    """Sorts a part of the order into ``scratch`` so that all run after what they wait for.

    Returns:
        How many were sorted; fewer than there are: a cycle.
    """
    position, missing, part, found = run.position, run.other_scratch, run.scratch, 0
    for at in range(low, high + 1):
        node = run.order[at]
        missing[node] = (position[run.previous[node]] >= low) + (position[jobs.before[node]] >= low)
        if missing[node] == 0:
            part[found] = node
            found += 1
    done = 0
    while done < found:
        node = part[done]
        done += 1
        for which in range(2):
            other = jobs.after[node] if which else run.following[node]
            if low <= position[other] <= high:
                missing[other] -= 1
                if missing[other] == 0:
                    part[found] = other
                    found += 1
    return found


def run_forwards(jobs: Jobs, run: Run, low: int) -> None:
    """When everything ends, from a place of the order on."""
    order, ends, previous = run.order, run.ends, run.previous
    duration, before, lag, gate = jobs.duration, jobs.before, jobs.lag, jobs.gate
    for place in range(low, len(order)):
        node = order[place]
        start = ends[before[node]] + lag[node]
        free = ends[previous[node]]
        if free > start:
            start = free
        if gate[node] > start:
            start = gate[node]
        ends[node] = start + duration[node]


def run_backwards(jobs: Jobs, run: Run, high: int) -> None:
    """How much comes after everything, up to a place of the order."""
    order, rests, following = run.order, run.rests, run.following
    duration, after, lag, finish = jobs.duration, jobs.after, jobs.lag, jobs.finish
    for place in range(high, -1, -1):
        node = order[place]
        waiting = after[node]
        rest = rests[waiting] + lag[waiting]
        own = rests[following[node]]
        if own > rest:
            rest = own
        if finish[node] > rest:
            rest = finish[node]
        rests[node] = rest + duration[node]
