"""Runs a rank's instructions in order and records when everything happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Instruction,
    Receive,
    Send,
)
from crosspipe_ray.engine.message_codecs import MessageCodecs
from crosspipe_ray.engine.messages import MessageSpec
from crosspipe_ray.engine.stage import Stage
from crosspipe_ray.engine.transports import Handle, Transport
from crosspipe_ray.measured import RankRecord
from crosspipe_ray.ops import Kind, Op, receive_for, receive_of
from crosspipe_ray.timeline import Span


class Interpreter:
    """One rank's executor. It never waits but for the input of the op that is next.

    Args:
        rank: this rank.
        stages: the rank's stages by their global index.
        transport: to the other ranks; None where there are none.
        message_spec: of every RECV op, before its codec.
        device: where received tensors are made.
        timeout_s: longest wait for one message.
        codecs: of the links; their time belongs to the ops that make and take the messages.
    """

    def __init__(
        self,
        rank: int,
        *,
        stages: Mapping[int, Stage],
        transport: Transport | None,
        message_spec: Callable[[Op], MessageSpec],
        device: torch.device,
        timeout_s: float,
        codecs: MessageCodecs | None = None,
    ) -> None:
        self._rank = rank
        self._stages = stages
        self._transport = transport
        self._message_spec = message_spec
        self._device = device
        self._timeout_s = timeout_s
        self._codecs = codecs or MessageCodecs()
        self._execute: dict[type[Instruction], Callable[[Instruction], None]] = {
            Forward: self._forward,
            BackwardInput: self._backward_input,
            BackwardWeight: self._backward_weight,
            Backward: self._backward,
            Send: self._send,
            Receive: self._receive,
        }
        self._reset()

    def run(self, program: Sequence[Instruction]) -> RankRecord:
        """Executes one step; what was posted ahead of it is not posted again.

        Raises:
            RunError: a message did not come in time, or the run was aborted.
        """
        for instruction in program[self._num_posted_ahead :]:
            self._execute[type(instruction)](instruction)
        while self._sends:
            self._finish_send(self._sends.popleft())
        record = self._record
        self._reset()
        return record

    def post_ahead(self, program: Sequence[Instruction]) -> None:
        """Posts the receives that the next step begins with, so that their senders know of them.

        Until then, nothing else may be received. NCCL's receives are kernels that spin until the
        message comes; none is left on a GPU, where what comes in between may wait for all of it.

        Args:
            program: of the next step.
        """
        if self._device.type == "cuda":
            return
        for instruction in takewhile(lambda each: isinstance(each, Receive), program):
            self._receive(instruction)
            self._num_posted_ahead += 1

    def _reset(self) -> None:
        self._record = RankRecord(self._rank)
        self._num_posted_ahead = 0
        self._posted: dict[Op, tuple[Tensor, Handle]] = {}
        self._posted_bytes = 0
        self._ready: dict[Op, Tensor] = {}  # made on this rank, by the RECV that it stands in for
        self._outgoing: dict[Op, Tensor] = {}  # made on this rank, by its SEND
        self._sends: deque[tuple[Send, int, Tensor, Handle]] = deque()

    def _forward(self, instruction: Instruction) -> None:
        op = instruction.op
        activation, stage = self._input(op), self._stages[op.stage]
        self._compute(op, Kind.SEND_F, lambda microbatch: stage.forward(microbatch, activation()))

    def _backward_input(self, instruction: Instruction) -> None:
        op = instruction.op
        gradient, stage = self._input(op), self._stages[op.stage]
        self._compute(
            op, Kind.SEND_B, lambda microbatch: stage.backward_input(microbatch, gradient())
        )

    def _backward_weight(self, instruction: Instruction) -> None:
        assert isinstance(instruction, BackwardWeight)
        op, part = instruction.op, instruction.part
        stage = self._stages[op.stage]
        self._compute(op, None, lambda microbatch: stage.backward_weight(microbatch, part))

    def _backward(self, instruction: Instruction) -> None:
        op = instruction.op
        gradient, stage = self._input(op), self._stages[op.stage]
        self._compute(op, Kind.SEND_B, lambda microbatch: stage.backward(microbatch, gradient()))

    def _compute(self, op: Op, send: Kind | None, run: Callable[[int], Tensor | None]) -> None:
        """Runs a compute op, records its span, and keeps its output for the stage it goes to."""
        assert op.microbatch is not None, "compute ops belong to a microbatch"
        message = None if send is None else Op(op.stage, send, op.microbatch)
        start_ns = clock.now_ns()
        output = run(op.microbatch)
        if output is not None and message is not None:
            output = self._codecs.encode(message, output)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._record.spans.append(Span(op, start_ns, clock.now_ns()))
        if output is not None and message is not None:
            receive = receive_of(message)
            if receive.stage in self._stages:
                self._ready[receive] = output
            else:
                self._outgoing[message] = output

    def _input(self, op: Op) -> Callable[[], Tensor | None]:
        """Waits for the input of an op; the call that it returns decodes it, as part of the op.

        It was received, or made on this rank, or is None at the ends of the pipeline.
        """
        receive = receive_for(op)
        assert receive is not None, "W takes no input"
        if receive not in self._posted:
            made = self._ready.pop(receive, None)
            return lambda: made
        tensor, handle = self._posted.pop(receive)
        self._wait(op, receive, handle)
        self._posted_bytes -= tensor.nbytes
        return partial(self._codecs.decode, receive, tensor, self._message_spec(receive))

    def _wait(self, op: Op, receive: Op, handle: Handle) -> None:
        start_ns = clock.now_ns()
        handle.wait(timeout_s=self._timeout_s)
        end_ns = clock.now_ns()
        self._record.waits.append(Span(op, start_ns, end_ns))
        self._record.arrived[receive] = handle.done_ns or end_ns

    def _send(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Send)
        assert self._transport is not None, "a program with messages needs a transport"
        tensor = self._outgoing.pop(instruction.op).contiguous()
        start_ns = clock.now_ns()
        handle = self._transport.isend(tensor, peer=instruction.peer, tag=instruction.tag)
        self._sends.append((instruction, start_ns, tensor, handle))
        while self._sends and self._sends[0][3].done_ns is not None:
            self._finish_send(self._sends.popleft())

    def _finish_send(self, under_way: tuple[Send, int, Tensor, Handle]) -> None:
        """Lets go of a tensor that has left."""
        instruction, start_ns, _, handle = under_way
        handle.wait(timeout_s=self._timeout_s)
        if handle.window is not None:
            start_ns, end_ns, _ = handle.window
        else:
            end_ns = handle.done_ns or clock.now_ns()
        self._record.sent[instruction.op] = (instruction.peer, start_ns, end_ns)

    def _receive(self, instruction: Instruction) -> None:
        assert isinstance(instruction, Receive)
        assert self._transport is not None, "a program with messages needs a transport"
        spec = self._codecs.posted(instruction.op, self._message_spec(instruction.op))
        into = torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        handle = self._transport.irecv(into, peer=instruction.peer, tag=instruction.tag)
        self._posted[instruction.op] = (into, handle)
        self._posted_bytes += into.nbytes
        self._record.peak_posted_bytes = max(self._record.peak_posted_bytes, self._posted_bytes)
