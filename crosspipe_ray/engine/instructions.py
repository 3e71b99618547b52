"""What the interpreter executes: a small dataclass per instruction, made from a rank's program."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat

from crosspipe_ray.ops import WHOLE, Kind, Op, Part, receive_of
from crosspipe_ray.program import Program


@dataclass(frozen=True, slots=True)
class Instruction:
    """One op of a program."""

    op: Op


@dataclass(frozen=True, slots=True)
class Forward(Instruction):
    """Runs F on the input that has arrived or was made on this rank."""


@dataclass(frozen=True, slots=True)
class BackwardInput(Instruction):
    """Runs I."""


@dataclass(frozen=True, slots=True)
class BackwardWeight(Instruction):
    """Runs W, or a part of it."""

    part: Part = WHOLE


@dataclass(frozen=True, slots=True)
class Backward(Instruction):
    """Runs I and W as one op."""


@dataclass(frozen=True, slots=True)
class Send(Instruction):
    """Hands the op's tensor to the transport; does not wait."""

    peer: int
    tag: int


@dataclass(frozen=True, slots=True)
class Receive(Instruction):
    """Posts a receive; the op that uses the message waits for it."""

    peer: int
    tag: int


_COMPUTE: dict[Kind, type[Instruction]] = {
    Kind.F: Forward,
    Kind.I: BackwardInput,
    Kind.B: Backward,
}


def instructions(program: Program, *, num_microbatches: int) -> tuple[Instruction, ...]:
    """Turns a rank's program into instructions."""
    parts = program.parts or repeat(WHOLE)
    return tuple(
        _instruction(program, op, part, num_microbatches)
        for op, part in zip(program.ops, parts, strict=False)
    )


def _instruction(program: Program, op: Op, part: Part, num_microbatches: int) -> Instruction:
    if op.kind is Kind.W:
        return BackwardWeight(op, part)
    if op.kind in _COMPUTE:
        return _COMPUTE[op.kind](op)
    if op.kind in (Kind.SEND_F, Kind.SEND_B):
        return Send(op, program.peers[op], _tag(receive_of(op), num_microbatches))
    return Receive(op, program.peers[op], _tag(op, num_microbatches))


def _tag(receive: Op, num_microbatches: int) -> int:
    """A number of its own for every message of a step, the same at both ends."""
    assert receive.microbatch is not None, "messages belong to a microbatch"
    return (
        2 * receive.stage + (receive.kind is Kind.RECV_B)
    ) * num_microbatches + receive.microbatch
