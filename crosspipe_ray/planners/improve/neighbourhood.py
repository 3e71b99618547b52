"""Which moves may help: those within a block of a critical path, and exchanges with a node outside.

Nodes are drawn by lot. Whether a move is possible shows when it is estimated, or made.
"""

from __future__ import annotations

from crosspipe_ray.planners.improve.disjunctive import LOT, MAKESPAN_NS, Jobs, Run


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


def lot(run: Run, below: int) -> int:
    """A random number (Park and Miller 1988)."""
    run.numbers[LOT] = run.numbers[LOT] * 48271 % 2147483647
    return run.numbers[LOT] % below
