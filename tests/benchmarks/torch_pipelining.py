"""One rank of a torch.distributed.pipelining schedule with stages that sleep.

    RANK=0 WORLD_SIZE=4 MASTER_ADDR=... MASTER_PORT=... \\
        python -m tests.benchmarks.torch_pipelining PLAN.json Schedule1F1B --steps 4

Costs and message sizes are those of the plan's problem. A schedule's name, or a CSV that
``crosspipe export`` wrote: then torch's runtime runs our order. Rank 0 prints the seconds of each
step, then the most microbatches that a rank held between F and W.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from crosspipe_ray.plan import read_plan
from crosspipe_ray.problem import Problem, Stage

_TIMEOUT = timedelta(seconds=300)
_FLOAT_BYTES = 4


class _Held:
    """Activations that this rank's stages hold in a step."""

    def __init__(self) -> None:
        self.start_step()

    def start_step(self) -> None:
        """Forgets the step before: in the first, torch runs a forward to learn shapes."""
        self._now = self.peak = 0

    def add(self, change: int) -> None:
        self._now += change
        self.peak = max(self.peak, self._now)


_held = _Held()


class _Sleep(torch.autograd.Function):
    """F in forward, I in backward; W is the stage's ``dw_builder``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, stage: Stage) -> Tensor:
        ctx.stage = stage
        _held.add(1)
        time.sleep(stage.forward_us / 1e6)
        return inputs + weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        time.sleep(ctx.stage.backward_input_us / 1e6)
        return gradients[0], torch.zeros(1), None


class _SleepingModule(nn.Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self._stage = stage

    def forward(self, inputs: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = _Sleep.apply  # untyped in torch
        return apply(inputs, self.weight, self._stage)


def main() -> None:
    """Runs the schedule."""
    options = _parse()
    problem = read_plan(options.plan).problem
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    schedule = _schedule(options.schedule, problem, rank, num_ranks)
    for _ in range(options.steps):
        dist.barrier()
        _held.start_step()
        started = time.perf_counter()
        _step(schedule, problem, rank)
        dist.barrier()
        if rank == 0:
            print(f"{time.perf_counter() - started:.4f}", flush=True)
    _print_peak(num_visits=len(problem.stages) // num_ranks)
    dist.destroy_process_group()


def _print_peak(*, num_visits: int) -> None:
    """A stage holds its share of a microbatch."""
    peak = torch.tensor(_held.peak / num_visits)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print(f"{peak:g}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("schedule", help="a schedule class of torch, or a CSV of compute ops")
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args()


def _schedule(name: str, problem: Problem, rank: int, num_ranks: int) -> Any:
    stages = [_stage(problem, index) for index in problem.stages_of_rank[rank]]
    arguments = {"n_microbatches": problem.num_microbatches, "loss_fn": _loss}
    if name.endswith(".csv"):
        runtime: Any = schedules._PipelineScheduleRuntime  # what torch itself loads CSVs with
        schedule = runtime(stages, **arguments)
        schedule._load_csv(name, format="compute_only")
        return schedule
    kind: Callable[..., Any] = getattr(schedules, name)
    return kind(stages[0] if len(problem.stages) == num_ranks else stages, **arguments)


def _stage(problem: Problem, index: int) -> PipelineStage:
    costs = problem.stages[index]
    return PipelineStage(
        _SleepingModule(costs),
        index,
        len(problem.stages),
        torch.device("cpu"),
        dw_builder=lambda: lambda: _run_weight_op(costs),
    )


def _run_weight_op(costs: Stage) -> None:
    time.sleep(costs.backward_weight_us / 1e6)
    _held.add(-1)


def _step(schedule: Any, problem: Problem, rank: int) -> None:
    shape = (problem.num_microbatches, problem.stages[0].output_bytes // _FLOAT_BYTES)
    own = problem.stages_of_rank[rank]
    inputs = [torch.zeros(shape)] if 0 in own else []
    target = {"target": torch.zeros(shape)} if len(problem.stages) - 1 in own else {}
    schedule.step(*inputs, **target)


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).mean()


if __name__ == "__main__":
    main()
