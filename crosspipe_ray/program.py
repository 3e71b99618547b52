"""What every rank does in a step, and the check that no rank waits for another for good."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import Kind, Op, Part, receive_for, receive_of

Lane = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """What one rank does in a step, in order: F I W B, and SEND_F SEND_B RECV_F RECV_B.

    Attributes:
        peers: the other rank of every SEND and RECV.
        peak_posted_bytes: most bytes of receives that are posted and not yet used.
        parts: of every op; empty: all are whole.
    """

    rank: int
    ops: tuple[Op, ...]
    peers: dict[Op, int]
    peak_posted_bytes: int
    parts: tuple[Part, ...] = ()


def lanes(programs: Iterable[Program]) -> tuple[Lane, ...]:
    """The directed pairs of ranks that exchange messages, in a fixed order."""
    used = {
        (program.rank, program.peers[op])
        for program in programs
        for op in program.ops
        if op.kind in (Kind.SEND_F, Kind.SEND_B)
    }
    return tuple(sorted(used))


def check_progress(programs: Sequence[Program]) -> None:
    """Runs the programs without a clock: sends never wait, a compute op waits for its message.

    Raises:
        ScheduleError: a lane's receives are not in the order of its sends, or the ranks stop for
            good; names rank and op.
    """
    sent: dict[Lane, deque[Op]] = defaultdict(deque)
    posted: dict[Lane, deque[Op]] = defaultdict(deque)
    arrived: set[Op] = set()
    position = [0] * len(programs)
    moved = True
    while moved:
        moved = False
        for program in programs:
            rank = program.rank
            while position[rank] < len(program.ops) and _step(
                program, program.ops[position[rank]], sent, posted, arrived
            ):
                position[rank] += 1
                moved = True
    for program in programs:
        if position[program.rank] < len(program.ops):
            op = program.ops[position[program.rank]]
            raise ScheduleError(f"rank {program.rank}, op {op}: deadlock, its input is never sent")


def _step(
    program: Program,
    op: Op,
    sent: dict[Lane, deque[Op]],
    posted: dict[Lane, deque[Op]],
    arrived: set[Op],
) -> bool:
    """Does one op if it can go on."""
    if op.kind in (Kind.SEND_F, Kind.SEND_B):
        lane = program.rank, program.peers[op]
        sent[lane].append(receive_of(op))
        _match(lane, sent[lane], posted[lane], arrived)
    elif op.kind in (Kind.RECV_F, Kind.RECV_B):
        lane = program.peers[op], program.rank
        posted[lane].append(op)
        _match(lane, sent[lane], posted[lane], arrived)
    else:
        needed = receive_for(op)
        return needed is None or needed not in program.peers or needed in arrived
    return True


def _match(lane: Lane, sent: deque[Op], posted: deque[Op], arrived: set[Op]) -> None:
    while sent and posted:
        if sent[0] != posted[0]:
            raise ScheduleError(
                f"lane {lane[0]}->{lane[1]}: {sent[0]} arrives where {posted[0]} is expected"
            )
        arrived.add(posted.popleft())
        sent.popleft()
