"""The inner loops of the bounds: raising heads, and the optimum of one machine.

Rows and ops are those of `greedy.kernel`: row = 3 x stage + kind, op = row x M + microbatch.
"""

from __future__ import annotations

from typing import NamedTuple

from crosspipe_ray.compiled import NEVER, Numbers


class Bonds(NamedTuple):
    """What binds the rows of a problem, or of its mirror image; all are read only.

    Attributes:
        durations: per row.
        order: rows in an order in which data flows.
        edge_first: per row and one more, where the edges into it begin.
        edge_source, edge_shift, edge_occupancy, edge_latency: op ``m`` waits for op ``m - shift``
            of the source and its message.
        before_first: per row and one more, where begins what its rank must have run before.
        before_row, before_shift: op ``m`` waits for all up to op ``m - shift`` of such a row.
    """

    durations: Numbers
    order: Numbers
    edge_first: Numbers
    edge_source: Numbers
    edge_shift: Numbers
    edge_occupancy: Numbers
    edge_latency: Numbers
    before_first: Numbers
    before_row: Numbers
    before_shift: Numbers


class Jobs(NamedTuple):
    """The jobs of one machine, in rows in which heads go up and tails go down; read only.

    Attributes:
        first: per row and one more, where its jobs begin.
        durations: per row, of each of its jobs.
        heads, tails: per job.
    """

    first: Numbers
    durations: Numbers
    heads: Numbers
    tails: Numbers


class Work(NamedTuple):
    """What changes.

    Attributes:
        heads: per op.
        seen: per row, when it was last looked at.
        moved: per row, when a head of it last moved.
        begins, ends: of the busy periods of a rank; M per row that comes before, and one more.
        after: per period, the next one; -1: none.
        within: per period, the one that it has become part of; itself: none.
        num_periods: of length 1.
        latest: per row that comes before, the period that it joined last.
    """

    heads: Numbers
    seen: Numbers
    moved: Numbers
    begins: Numbers
    ends: Numbers
    after: Numbers
    within: Numbers
    num_periods: Numbers
    latest: Numbers


def raise_heads(bonds: Bonds, work: Work, num_microbatches: int, most_sweeps: int) -> int:
    """Raises all heads to what binds them, by sweeps until nothing moves.

    Returns:
        The number of sweeps; each is valid by itself.
    """
    now = 0
    for sweep in range(most_sweeps):
        has_moved = False
        for row in bonds.order:
            now += 1
            if is_stale(bonds, work, row):
                work.seen[row] = now
                if raise_row(bonds, work, num_microbatches, row):
                    work.moved[row] = now
                    has_moved = True
        if not has_moved:
            return sweep
    return most_sweeps


def is_stale(bonds: Bonds, work: Work, row: int) -> bool:
    """Whether a row that it waits for has moved since it was looked at, or it never was."""
    if work.seen[row] == 0:
        return True
    for edge in range(bonds.edge_first[row], bonds.edge_first[row + 1]):
        if work.moved[bonds.edge_source[edge]] > work.seen[row]:
            return True
    for index in range(bonds.before_first[row], bonds.before_first[row + 1]):
        if work.moved[bonds.before_row[index]] > work.seen[row]:
            return True
    return False


def raise_row(bonds: Bonds, work: Work, num_microbatches: int, row: int) -> bool:
    """Raises the heads of one row by its edges, its rank and its own order."""
    heads, base, has_moved = work.heads, row * num_microbatches, False
    for edge in range(bonds.edge_first[row], bonds.edge_first[row + 1]):
        if raise_by_edge(bonds, work, num_microbatches, row, edge):
            has_moved = True
    if raise_by_rank(bonds, work, num_microbatches, row):
        has_moved = True
    free = 0
    for op in range(base, base + num_microbatches):
        if heads[op] < free:
            heads[op] = free
            has_moved = True
        free = heads[op] + bonds.durations[row]
    return has_moved


def raise_by_edge(bonds: Bonds, work: Work, num_microbatches: int, row: int, edge: int) -> bool:
    """Every op waits for its message; the messages of an edge go one after the other."""
    heads, has_moved, sent = work.heads, False, 0
    source, shift = bonds.edge_source[edge], bonds.edge_shift[edge]
    occupancy, latency = bonds.edge_occupancy[edge], bonds.edge_latency[edge]
    for m in range(shift, num_microbatches):
        ready = heads[source * num_microbatches + m - shift] + bonds.durations[source]
        sent = (max(sent, ready) if occupancy > 0 else ready) + occupancy
        op = row * num_microbatches + m
        if heads[op] < sent + latency:
            heads[op] = sent + latency
            has_moved = True
    return has_moved


def raise_by_rank(bonds: Bonds, work: Work, num_microbatches: int, row: int) -> bool:
    """Every op waits until its rank can have run all that must come before it.

    A machine that idles only when nothing is there ends as early as any. Its busy periods are kept
    while ops join them, one of each row per microbatch. The heads of a row go up, so each row looks
    for its period from the latest one that it joined.
    """
    heads, has_moved, last = work.heads, False, 0
    first, end = bonds.before_first[row], bonds.before_first[row + 1]
    forget_periods(work, end - first)
    for m in range(num_microbatches):
        for index in range(first, end):
            other, nth = bonds.before_row[index], m - bonds.before_shift[index]
            if nth >= 0 and bonds.durations[other] > 0:
                head = heads[other * num_microbatches + nth]
                period = join(work, work.latest[index - first], head, bonds.durations[other])
                work.latest[index - first] = period
                if work.after[period] < 0:
                    last = period
        op = row * num_microbatches + m
        if heads[op] < work.ends[last]:
            heads[op] = work.ends[last]
            has_moved = True
    return has_moved


def forget_periods(work: Work, num_rows: int) -> None:
    """Leaves one period, empty and before all others."""
    work.begins[0] = work.ends[0] = work.after[0] = -1
    work.within[0], work.num_periods[0] = 0, 1
    for index in range(num_rows):
        work.latest[index] = 0


def join(work: Work, period: int, head: int, duration: int) -> int:
    """Adds an op to the busy periods, looking from one of them on; the period it is in."""
    begins, ends, after = work.begins, work.ends, work.after
    while work.within[period] != period:
        period = work.within[period]
    while after[period] >= 0 and begins[after[period]] <= head:
        period = after[period]
    if ends[period] >= head:
        ends[period] += duration
    else:
        new = work.num_periods[0]
        work.num_periods[0] += 1
        begins[new], ends[new], after[new], work.within[new] = (
            head, head + duration, after[period], new,
        )  # fmt: skip
        after[period] = new
        period = new
    while after[period] >= 0 and begins[after[period]] <= ends[period]:
        merged = after[period]
        ends[period] += ends[merged] - begins[merged]
        after[period], work.within[merged] = after[merged], period
    return period


def machine_bound(jobs: Jobs, done: Numbers, left: Numbers) -> int:
    """Optimum of one machine with heads and tails when jobs may be preempted.

    Whatever is there and has the longest tail runs (Jackson's rule; optimal, Horn 1974).

    Args:
        jobs: of the machine.
        done: per row, zero.
        left: per row, the duration.
    """
    bound, now = 0, 0
    while True:
        row = most_urgent(jobs, done, now)
        if row < 0:
            now = next_head(jobs, done, now, -1)
            if now == NEVER:
                return bound
            continue
        tail = jobs.tails[jobs.first[row] + done[row]]
        until = min(now + left[row], next_head(jobs, done, now, tail))
        left[row] -= until - now
        now = until
        if left[row] == 0:
            bound = max(bound, now + tail)
            done[row] += 1
            left[row] = jobs.durations[row]


def most_urgent(jobs: Jobs, done: Numbers, now: int) -> int:
    """The row whose next job is there and has the longest tail; -1: none."""
    best, best_tail = -1, -1
    for row in range(len(jobs.durations)):
        job = jobs.first[row] + done[row]
        if job < jobs.first[row + 1] and jobs.heads[job] <= now and jobs.tails[job] > best_tail:
            best, best_tail = row, jobs.tails[job]
    return best


def next_head(jobs: Jobs, done: Numbers, now: int, tail: int) -> int:
    """When the next job with a longer tail comes; NEVER: none does."""
    soonest = NEVER
    for row in range(len(jobs.durations)):
        job = jobs.first[row] + done[row]
        if job < jobs.first[row + 1] and jobs.heads[job] > now and jobs.tails[job] > tail:
            soonest = min(soonest, jobs.heads[job])
    return soonest
