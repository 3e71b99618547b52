"""Moves: a node goes to another place of its machine, or two of a rank change places.

A rank of several stages that is idle because its memory is full has filled it with the wrong F's.
None of them may come earlier, and the critical path begins after them; but one on it may change
places with one of another stage. That is what exchanges are for, of F's and of W's.
"""

from __future__ import annotations

from crosspipe_ray.compiled import NEVER
from crosspipe_ray.planners.improve.disjunctive import Jobs, Run
from crosspipe_ray.planners.improve.longest_paths import evaluate, link


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
