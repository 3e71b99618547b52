"""The clock's loop: machines that do one job after the other, each when its input is there.

A machine is a rank with its ops or a channel with its messages. A job is a code (`ops.op_code`);
all jobs of a row (stage and kind) are alike. The loop runs as Python on lists and compiled on
arrays.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from heapq import heappop, heappush
from typing import NamedTuple

from crosspipe_ray.columns import Ints
from crosspipe_ray.ops import MICROBATCH_BITS, MICROBATCH_MASK

NOT_YET = -1
NOTHING = -1


class Rows(NamedTuple):
    """What is known of the jobs of each row: arrays, or lists when the clock runs as Python.

    Attributes:
        machine: that does them.
        needs: slot of the input of microbatch 0; the other microbatches follow.
        duration: on the machine.
        gate: time before which none starts.
        lag: from the end to the input being there at the target.
        target: the row that takes the output; NOTHING: none does.
        is_queued: whether the machine takes them in the order in which they are ready, and not in
            a given one.
    """

    machine: Ints
    needs: Ints
    duration: Ints
    gate: Ints
    lag: Ints
    target: Ints
    is_queued: Ints


def run(
    rows: Rows,
    codes: MutableSequence[int],
    position: MutableSequence[int],
    end: MutableSequence[int],
    ready: MutableSequence[int],
    starts: MutableSequence[int],
) -> None:
    """Does what can be done.

    All that needs no queue is done first, whatever its time; so the earliest in the queue is the
    earliest there will be.

    Args:
        rows: by row.
        codes: jobs of the machines, one machine's after the other's. Queued ones are filled in.
        position: per machine, where its next job stands; afterwards the first that was not done.
        end: per machine, where its jobs end.
        ready: per slot, when the input is there, or NOT_YET.
        starts: per job, to be filled in.
    """
    machine_of, needs, duration, gate, lag, target, is_queued = rows
    free = [0 for _ in position]
    waits_for = [NOTHING for _ in position]
    running = list(range(len(position)))
    queue = [(0, 0)]
    queue.pop()
    while len(running) > 0 or len(queue) > 0:
        if len(running) > 0:
            machine = running.pop()
        else:
            _, code = heappop(queue)
            machine = machine_of[code >> MICROBATCH_BITS]
            codes[end[machine]] = code
            end[machine] += 1
        at, now = position[machine], free[machine]
        while at < end[machine]:
            row, microbatch = codes[at] >> MICROBATCH_BITS, codes[at] & MICROBATCH_MASK
            there = ready[needs[row] + microbatch]
            if there == NOT_YET:
                waits_for[machine] = needs[row] + microbatch
                break
            starts[at] = max(now, there, gate[row])
            now = starts[at] + duration[row]
            at += 1
            receiving = target[row]
            if receiving == NOTHING:
                continue
            slot = needs[receiving] + microbatch
            ready[slot] = now + lag[row]
            receiver = machine_of[receiving]
            if is_queued[receiving]:
                heappush(queue, (ready[slot], (receiving << MICROBATCH_BITS) + microbatch))
            elif waits_for[receiver] == slot:
                waits_for[receiver] = NOTHING
                running.append(receiver)
        position[machine], free[machine] = at, now
