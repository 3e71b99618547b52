"""The words of the schedule language: one op, its kind, and its text.

The text is torch.distributed.pipelining's: stage, kind, microbatch, as in ``2F0``, ``1I3``,
``0SEND_F1``; ``UNSHARD`` and ``REDUCE_GRAD`` belong to a whole stage and carry no microbatch.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from crosspipe_ray.errors import ScheduleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    IntT = TypeVar("IntT", int, NDArray[np.int64])


class Kind(IntEnum):
    """What an op does. An IntEnum, so that a kind indexes a list of costs directly."""

    F = 0
    """Forward."""
    I = 1
    """Backward for the input."""
    W = 2
    """Backward for the weights."""
    B = 3
    """I, then W, as one op."""
    SEND_F = 4
    RECV_F = 5
    SEND_B = 6
    RECV_B = 7
    UNSHARD = 8
    """Data-parallel gather of a stage's weights, before its first F."""
    REDUCE_GRAD = 9
    """Data-parallel reduction of a stage's gradients, after its last W."""


# Of an op's code, an integer of 64 bits.
KIND_BITS, MICROBATCH_BITS = 4, 32
MICROBATCH_MASK = (1 << MICROBATCH_BITS) - 1
MAX_STAGES, MAX_MICROBATCHES = 1 << 27, 1 << MICROBATCH_BITS
MAX_SUB_BLOCKS = 64
COMPUTE_KINDS = (Kind.F, Kind.I, Kind.W, Kind.B)


class Op(NamedTuple):
    """One op of one stage; ``microbatch`` is None for ops of a whole stage.

    >>> str(Op(2, Kind.F, 0)), parse_op("0SEND_F1")
    ('2F0', Op(stage=0, kind=<Kind.SEND_F: 4>, microbatch=1))
    """

    stage: int
    kind: Kind
    microbatch: int | None

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.name}{'' if self.microbatch is None else self.microbatch}"


class Part(NamedTuple):
    """Parts ``first`` to ``end`` - 1 of an op that is cut in ``num_parts``."""

    first: int
    end: int
    num_parts: int

    def __str__(self) -> str:
        return f"{self.first}-{self.end}/{self.num_parts}"


WHOLE = Part(0, 1, 1)


def op_row(stage: IntT, kind: IntT) -> IntT:
    """One integer for a stage and kind: index of the tables that the clock reads."""
    return (stage << KIND_BITS) + kind


def op_code(stage: IntT, kind: IntT, microbatch: IntT | None) -> IntT:
    """One integer for an op, or an array of them; codes sort as the ops do.

    >>> hex(op_code(2, Kind.W, 7)), split_code(op_code(2, Kind.W, 7))
    ('0x2200000007', (2, 2, 7))
    """
    row = op_row(stage, kind) << MICROBATCH_BITS
    return row if microbatch is None else row + microbatch


def split_code(code: IntT) -> tuple[IntT, IntT, IntT]:
    """Stage, kind and microbatch (0 for ops of a whole stage) of codes."""
    row = code >> MICROBATCH_BITS
    return row >> KIND_BITS, row & (1 << KIND_BITS) - 1, code & MICROBATCH_MASK


_PATTERN = re.compile(r"(\d+)(UNSHARD|REDUCE_GRAD|(?:SEND|RECV)_[FB]|[FIWB])(\d*)")
_WHOLE_STAGE = (Kind.UNSHARD, Kind.REDUCE_GRAD)


def parse_op(text: str) -> Op:
    """Reads one op.

    Raises:
        ScheduleError: the text is no op.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ScheduleError(f"'{text}' is no op; one looks like 2F0, 1I3, 1W3, 0B2 or 0SEND_F1")
    stage, kind, microbatch = int(match[1]), Kind[match[2]], match[3]
    if stage >= MAX_STAGES or int(microbatch or 0) >= MAX_MICROBATCHES:
        raise ScheduleError(f"'{text}' is no op: there are not so many stages or microbatches")
    if (microbatch == "") != (kind in _WHOLE_STAGE):
        raise ScheduleError(
            f"'{text}' is no op: {kind.name} takes {'no' if microbatch else 'a'} microbatch"
        )
    return Op(stage, kind, int(microbatch) if microbatch else None)


def receive_of(send: Op) -> Op:
    """The RECV at the neighbour that matches a SEND.

    >>> str(receive_of(Op(1, Kind.SEND_F, 0))), str(receive_of(Op(1, Kind.SEND_B, 0)))
    ('2RECV_F0', '0RECV_B0')
    """
    if send.kind is Kind.SEND_F:
        return Op(send.stage + 1, Kind.RECV_F, send.microbatch)
    return Op(send.stage - 1, Kind.RECV_B, send.microbatch)


def receive_for(op: Op) -> Op | None:
    """The RECV of a compute op's input, were it to come from elsewhere; W has none.

    >>> str(receive_for(Op(1, Kind.F, 0))), receive_for(Op(1, Kind.W, 0))
    ('1RECV_F0', None)
    """
    if op.kind is Kind.W:
        return None
    return Op(op.stage, Kind.RECV_F if op.kind is Kind.F else Kind.RECV_B, op.microbatch)


def producers_of(send: Op) -> tuple[Op, ...]:
    """The ops that may make a SEND's message: F, or either of I and B.

    >>> [str(op) for op in producers_of(Op(1, Kind.SEND_B, 0))]
    ['1I0', '1B0']
    """
    kinds = (Kind.F,) if send.kind is Kind.SEND_F else (Kind.I, Kind.B)
    return tuple(Op(send.stage, kind, send.microbatch) for kind in kinds)
