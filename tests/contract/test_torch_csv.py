"""Exported plans run in torch.distributed.pipelining's own runtime, with autograd's gradients."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.schedule_csv import to_csv

NUM_RANKS, NUM_MICROBATCHES, WIDTH = 2, 4, 8
TIMEOUT_S = 60


@dataclass(frozen=True)
class Case:
    """A method on a placement."""

    method: str
    pattern: Pattern
    is_fused: bool = False

    def plan(self) -> Plan:
        recipe = Recipe(
            num_ranks=NUM_RANKS,
            num_microbatches=NUM_MICROBATCHES,
            pattern=self.pattern,
            latency_ratio=1.0,
        )
        problem = generate(recipe).model_copy(update={"fused_backward": self.is_fused})
        return plan(problem, method=self.method, budget=Budget(iterations=6, time_limit_s=60.0))


CASES = {
    "1f1b": Case("1f1b", Pattern.ONE_PER_RANK),
    "zb-h1": Case("zb-h1", Pattern.ONE_PER_RANK),
    "zb-h2": Case("zb-h2", Pattern.ONE_PER_RANK),
    "zb-v": Case("zb-v", Pattern.WAVE),
    "dualpipe-v": Case("dualpipe-v", Pattern.WAVE),
    "interleaved": Case("interleaved", Pattern.LOOP),
    "greedy": Case("greedy", Pattern.ONE_PER_RANK),
    "greedy-region-loop": Case("greedy", Pattern.REGION_LOOP),
    "greedy-fused-loop": Case("greedy", Pattern.LOOP, is_fused=True),
}


def make_model(num_stages: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_stages)]


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2 * NUM_MICROBATCHES, WIDTH), torch.randn(2 * NUM_MICROBATCHES, WIDTH)


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros(0) if p.grad is None else p.grad for p in module.parameters()]


def run_rank(rank: int, ranks_of_stages: dict[str, tuple[int, ...]], folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_RANKS
    )
    for name, ranks in ranks_of_stages.items():
        own = [index for index, owner in enumerate(ranks) if owner == rank]
        torch.save(run_step(folder / f"{name}.csv", own, len(ranks)), folder / f"{name}.{rank}.pt")
    dist.destroy_process_group()


def run_step(csv: Path, own: list[int], num_stages: int) -> dict[int, list[torch.Tensor]]:
    """One step by torch's runtime, on one of the ranks: the gradients of its stages."""
    modules, cpu = make_model(num_stages), torch.device("cpu")
    stages = [PipelineStage(modules[index], index, num_stages, cpu) for index in own]
    runtime: Any = _PipelineScheduleRuntime  # untyped, and internal to torch for now
    schedule = runtime(stages, NUM_MICROBATCHES, loss_fn=nn.functional.mse_loss, scale_grads=True)
    schedule._load_csv(str(csv), format="compute_only")
    inputs, target = make_batch()
    arguments: dict[str, Any] = {"target": target} if num_stages - 1 in own else {}
    schedule.step(*([inputs] if 0 in own else []), **arguments)
    return {index: gradients(modules[index]) for index in own}


def run_in_processes(*arguments: object) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=run_rank, args=(rank, *arguments), daemon=True)
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_S)
    assert [process.exitcode for process in ranks] == [0] * NUM_RANKS


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, list[torch.Tensor]]]:
    """Gradients by case and stage; all in one pair of processes, as these take long to start."""
    folder = tmp_path_factory.mktemp("steps")
    plans = {name: case.plan() for name, case in CASES.items()}
    for name, made in plans.items():
        (folder / f"{name}.csv").write_text(to_csv(made.schedule))
    run_in_processes({name: made.problem.rank_of_stage for name, made in plans.items()}, folder)
    return {
        name: torch.load(folder / f"{name}.0.pt") | torch.load(folder / f"{name}.1.pt")
        for name in plans
    }


@pytest.mark.parametrize("name", CASES)
def test_torch_runs_an_exported_plan(
    steps: dict[str, dict[int, list[torch.Tensor]]], name: str
) -> None:
    whole = make_model(len(steps[name]))
    inputs, target = make_batch()
    for part, wanted in zip(
        inputs.chunk(NUM_MICROBATCHES), target.chunk(NUM_MICROBATCHES), strict=True
    ):
        loss = nn.functional.mse_loss(nn.Sequential(*whole)(part), wanted)
        (loss / NUM_MICROBATCHES).backward()  # type: ignore[no-untyped-call]  # torch's own
    for index, module in enumerate(whole):
        torch.testing.assert_close(steps[name][index], gradients(module))
