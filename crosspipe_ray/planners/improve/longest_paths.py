"""Times of an order: the longest paths through its graph, up to every node and from it on.

A node starts once the one before it on its machine has ended, and once its one input is there: an
op's message, or a message's op. Memory is a matter of a rank's part alone, as a rank runs one op at
a time. After a move only what comes later or earlier is worked out anew.
"""

from __future__ import annotations

from crosspipe_ray.planners.improve.disjunctive import MAKESPAN_NS, Jobs, Run


def begin(jobs: Jobs, run: Run) -> bool:
    """Times of the order in ``sequence``; False: it waits for itself."""
    for machine in range(len(jobs.first) - 1):
        link(jobs, run, machine, jobs.first[machine], jobs.first[machine + 1])
    for position in range(len(run.order)):
        run.position[run.order[position]] = position
    return evaluate(jobs, run, 0, len(run.order) - 1)


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
