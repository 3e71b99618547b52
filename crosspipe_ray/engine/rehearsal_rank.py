"""One rank of a rehearsal: a plan run on real links by stages that only sleep."""

from __future__ import annotations

import torch

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.engine.instructions import instructions
from crosspipe_ray.engine.interpreter import Interpreter
from crosspipe_ray.engine.messages import MessageSpec
from crosspipe_ray.engine.synthetic import SyntheticStage
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.measured import StepReport
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Program


class RehearsalRank:
    """Runs one rank's program with synthetic stages.

    Args:
        problem: of the plan.
        program: this rank's.
        transport: to the other ranks.
        timeout_s: longest wait for one message.
    """

    def __init__(
        self, problem: Problem, program: Program, transport: Transport | None, *, timeout_s: float
    ) -> None:
        costs = stage_costs(problem)

        def spec(receive: Op) -> MessageSpec:
            before, after = receive.stage - 1, receive.stage + 1
            forward = receive.kind is Kind.RECV_F
            transfer = costs[before].output if forward else costs[after].gradient
            assert transfer is not None, "a RECV has a stage that sends"
            return MessageSpec((transfer.num_bytes,), torch.uint8)

        self._program = instructions(program, num_microbatches=problem.num_microbatches)
        self._interpreter = Interpreter(
            program.rank,
            stages={s: SyntheticStage(costs[s]) for s in problem.stages_of_rank[program.rank]},
            transport=transport,
            message_spec=spec,
            device=torch.device("cpu"),
            timeout_s=timeout_s,
        )

    def step(self, index: int, *, is_last: bool = True) -> StepReport:
        """Runs the plan once; another step follows at once unless it is the last."""
        record = self._interpreter.run(self._program)
        if not is_last:
            self._interpreter.post_ahead(self._program)
        return StepReport(index, record)
