"""The inner loop of list scheduling, on flat integer sequences.

Rows are 3 x stage + kind, ops are row x M + microbatch; an op's ``ready`` is the time at which its
input is there. What works one thing at a time is a machine: first the shared channels, then the
ranks, then the channels of one row, which choose nothing and are never looked at. The others sleep
until they may have something to start; the one that wakes first is found in a tree.

All of it runs as plain Python on lists and as machine code on arrays (`crosspipe_ray.compiled`).
"""

from __future__ import annotations

from typing import NamedTuple

from crosspipe_ray.compiled import NEVER, Numbers


class Net(NamedTuple):
    """A problem as flat sequences, or its mirror image; all are read only.

    Attributes:
        first: per rank and one more, where its rows begin in ``rows``.
        rows: rows by rank.
        rank: per row.
        duration: per row.
        after: per row, the row of the rank whose op of the same microbatch comes before; -1: none.
        taken: per row, bytes that an op takes when it starts.
        reserve: per row, bytes that must stay free besides those taken.
        freed: per row, bytes given back at the end.
        closing: per row that takes bytes, the row whose starts count against ``Choice.cap``.
        limit: per rank, bytes.
        target: per row, the row that waits for its message; -1: none.
        own: per row, the channel's machine if the row is its only user, else -1.
        shared: per row, the channel's machine if other rows use it too, else -1.
        occupancy, latency: per row, of its message.
        user_first, users: per shared channel and one more, where its rows begin, and its rows.
        gate: per row, before which no op starts (gather).
        finish: per row, time after its last op (reduction).
    """

    first: Numbers
    rows: Numbers
    rank: Numbers
    duration: Numbers
    after: Numbers
    taken: Numbers
    reserve: Numbers
    freed: Numbers
    closing: Numbers
    limit: Numbers
    target: Numbers
    own: Numbers
    shared: Numbers
    occupancy: Numbers
    latency: Numbers
    user_first: Numbers
    users: Numbers
    gate: Numbers
    finish: Numbers


class State(NamedTuple):
    """What changes.

    Attributes:
        ready: per op.
        starts: per op.
        done: per row, ops that have started.
        sent: per row, messages that a shared channel has begun to carry.
        held: per rank, bytes.
        free: per machine, from when on.
        wake: per machine, when it is looked at next: the leaves of a tree, in its second half, in
            which node n is the least of nodes 2 n and 2 n + 1, and node 1 of all.
        order: the ops of each rank in order, from M x ``first``.
        length: per rank, entries of ``order`` in use.
        sends: messages (as ops) on shared channels, in the order in which they go.
        num_sends: of length 1: entries of ``sends`` in use.
    """

    ready: Numbers
    starts: Numbers
    done: Numbers
    sent: Numbers
    held: Numbers
    free: Numbers
    wake: Numbers
    order: Numbers
    length: Numbers
    sends: Numbers
    num_sends: Numbers


class Choice(NamedTuple):
    """What decides.

    Attributes:
        urgency: per op; the highest that can start is started.
        patience: per row, how long a rank that could start such an op waits for a more urgent one.
        cap: per row that takes bytes, how far it may run ahead of the row that closes.
        goal: a rank waits only for an op that would start late otherwise, and miss this makespan.
    """

    urgency: Numbers
    patience: Numbers
    cap: Numbers
    goal: int


def run(net: Net, state: State, choice: Choice, num_microbatches: int) -> int:
    """Runs every op once and leaves the orders in ``state``.

    Machines are looked at in the order of time, at equal times channels first.

    Args:
        net: the problem.
        state: a fresh one.
        choice: what decides.
        num_microbatches: M.

    Returns:
        The makespan.
    """
    num_shared = len(net.user_first) - 1
    makespan = 0
    while state.wake[1] < NEVER:
        now, machine = state.wake[1], first_to_wake(state.wake)
        if machine < num_shared:
            send(net, state, choice, num_microbatches, machine, now)
            continue
        rank = machine - num_shared
        row = choose(net, state, choice, num_microbatches, rank, now)
        if row >= 0:
            end = start(net, state, num_microbatches, row, now)
            makespan = max(makespan, end + net.finish[row])
        else:
            wake_at(state.wake, machine, next_arrival(net, state, num_microbatches, rank, now))
    return makespan


def first_to_wake(wake: Numbers) -> int:
    """The machine with the least time; of equal ones the first."""
    node, num_leaves, least = 1, len(wake) // 2, wake[1]
    while node < num_leaves:
        node *= 2
        if wake[node] != least:
            node += 1
    return node - num_leaves


def wake_at(wake: Numbers, machine: int, at: int) -> None:
    """Sets the time of a machine, and the least times above it."""
    node = len(wake) // 2 + machine
    wake[node] = at
    while node > 1:
        if wake[node ^ 1] < at:
            at = wake[node ^ 1]
        node //= 2
        if wake[node] == at:
            break
        wake[node] = at


def call(state: State, machine: int, at: int) -> None:
    """Has a machine looked at when it is free, but not before ``at``."""
    at = max(at, state.free[machine])
    if at < state.wake[len(state.wake) // 2 + machine]:
        wake_at(state.wake, machine, at)


def choose(
    net: Net, state: State, choice: Choice, num_microbatches: int, rank: int, now: int
) -> int:
    """The row whose next op starts now; -1: none, or a more urgent one is worth waiting for."""
    best, best_urgency = -1, -NEVER
    coming, coming_urgency = NEVER, -NEVER
    for position in range(net.first[rank], net.first[rank + 1]):
        row = net.rows[position]
        microbatch = state.done[row]
        if microbatch == num_microbatches or (
            net.after[row] >= 0 and state.done[net.after[row]] <= microbatch
        ):
            continue
        op = row * num_microbatches + microbatch
        at, urgency = max(state.ready[op], net.gate[row]), choice.urgency[op]
        if at >= NEVER or (at <= now and urgency <= best_urgency):
            continue
        if net.taken[row] > 0 and not has_room(net, state, choice, rank, row):
            continue
        if at <= now:
            best, best_urgency = row, urgency
        elif urgency > coming_urgency:
            coming, coming_urgency = at, urgency
    if best >= 0 and coming_urgency > best_urgency:
        end = now + net.duration[best]
        is_late = coming < end and end + coming_urgency > choice.goal
        if is_late and coming - now <= choice.patience[best]:
            return -1
    return best


def has_room(net: Net, state: State, choice: Choice, rank: int, row: int) -> bool:
    """Whether the rank may hold one more microbatch of a row."""
    if state.held[rank] + net.taken[row] + net.reserve[row] > net.limit[rank]:
        return False
    return state.done[row] - state.done[net.closing[row]] < choice.cap[row]


def next_arrival(net: Net, state: State, num_microbatches: int, rank: int, now: int) -> int:
    """When the next input that a rank waits for is there, as far as is known."""
    soonest = NEVER
    for position in range(net.first[rank], net.first[rank + 1]):
        row = net.rows[position]
        if state.done[row] < num_microbatches:
            at = max(state.ready[row * num_microbatches + state.done[row]], net.gate[row])
            if at > now:
                soonest = min(soonest, at)
    return soonest


def start(net: Net, state: State, num_microbatches: int, row: int, now: int) -> int:
    """Starts a row's next op and returns its end; its message goes at once on an own channel."""
    rank, microbatch = net.rank[row], state.done[row]
    op = row * num_microbatches + microbatch
    end = now + net.duration[row]
    state.starts[op] = now
    state.done[row] += 1
    state.held[rank] += net.taken[row] - net.freed[row]
    state.order[num_microbatches * net.first[rank] + state.length[rank]] = op
    state.length[rank] += 1
    machine = len(net.user_first) - 1 + rank
    state.free[machine] = end
    wake_at(state.wake, machine, end)
    if net.shared[row] >= 0:
        call(state, net.shared[row], end)
    elif net.target[row] >= 0:
        sent = end
        if net.own[row] >= 0:
            sent = max(sent, state.free[net.own[row]]) + net.occupancy[row]
            state.free[net.own[row]] = sent
        arrive(net, state, num_microbatches, row, microbatch, sent + net.latency[row])
    return end


def arrive(
    net: Net, state: State, num_microbatches: int, row: int, microbatch: int, at: int
) -> None:
    """Makes the arrival of a row's message known to its receiver."""
    target = net.target[row]
    state.ready[target * num_microbatches + microbatch] = at
    call(state, len(net.user_first) - 1 + net.rank[target], at)


def send(
    net: Net,
    state: State,
    choice: Choice,
    num_microbatches: int,
    channel: int,
    now: int,
) -> None:
    """Starts the message on a free shared channel whose receiving op is the most urgent."""
    best, best_urgency = -1, -NEVER
    for position in range(net.user_first[channel], net.user_first[channel + 1]):
        row = net.users[position]
        if ready_to_send(net, state, num_microbatches, row) <= now:
            urgency = choice.urgency[net.target[row] * num_microbatches + state.sent[row]]
            if urgency > best_urgency:
                best, best_urgency = row, urgency
    if best >= 0:
        microbatch = state.sent[best]
        state.sent[best] += 1
        state.sends[state.num_sends[0]] = best * num_microbatches + microbatch
        state.num_sends[0] += 1
        sent = now + net.occupancy[best]
        state.free[channel] = sent
        arrive(net, state, num_microbatches, best, microbatch, sent + net.latency[best])
    wake_at(state.wake, channel, NEVER)
    for position in range(net.user_first[channel], net.user_first[channel + 1]):
        at = ready_to_send(net, state, num_microbatches, net.users[position])
        if at < NEVER:
            call(state, channel, at)


def ready_to_send(net: Net, state: State, num_microbatches: int, row: int) -> int:
    """When the next message of a row can go, as far as is known."""
    if state.sent[row] == state.done[row]:
        return NEVER
    return state.starts[row * num_microbatches + state.sent[row]] + net.duration[row]
