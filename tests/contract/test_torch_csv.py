"""Exported plans run in torch.distributed.pipelining's own runtime, with autograd's gradients."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.schedule_csv import to_csv

NUM_RANKS, NUM_MICROBATCHES, WIDTH = 2, 4, 8
TIMEOUT_S = 60
PLANS = {
    "1f1b": Pattern.ONE_PER_RANK,
    "zb-h1": Pattern.ONE_PER_RANK,
    "greedy": Pattern.ONE_PER_RANK,
    "zb-v": Pattern.WAVE,
}


def make_model(num_stages: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_stages)]


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2 * NUM_MICROBATCHES, WIDTH), torch.randn(2 * NUM_MICROBATCHES, WIDTH)


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros(0) if p.grad is None else p.grad for p in module.parameters()]


def run_rank(rank: int, csv: Path, ranks_of_stages: tuple[int, ...], folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_RANKS
    )
    modules, num_stages = make_model(len(ranks_of_stages)), len(ranks_of_stages)
    own = [index for index, owner in enumerate(ranks_of_stages) if owner == rank]
    cpu = torch.device("cpu")
    stages = [PipelineStage(modules[index], index, num_stages, cpu) for index in own]
    runtime: Any = _PipelineScheduleRuntime  # untyped, and internal to torch for now
    schedule = runtime(stages, NUM_MICROBATCHES, loss_fn=nn.functional.mse_loss, scale_grads=True)
    schedule._load_csv(str(csv), format="compute_only")
    inputs, target = make_batch()
    arguments: dict[str, Any] = {"target": target} if num_stages - 1 in own else {}
    schedule.step(*([inputs] if 0 in own else []), **arguments)
    torch.save({index: gradients(modules[index]) for index in own}, folder / f"{rank}.pt")
    dist.destroy_process_group()


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


@pytest.mark.parametrize("method", PLANS)
def test_torch_runs_an_exported_plan(method: str, tmp_path: Path) -> None:
    recipe = Recipe(
        num_ranks=NUM_RANKS,
        num_microbatches=NUM_MICROBATCHES,
        pattern=PLANS[method],
        latency_ratio=1.0,
    )
    made = plan(generate(recipe), method=method)
    (tmp_path / "plan.csv").write_text(to_csv(made.schedule))
    run_in_processes(tmp_path / "plan.csv", made.problem.rank_of_stage, tmp_path)
    whole = make_model(len(made.problem.stages))
    inputs, target = make_batch()
    for part, wanted in zip(
        inputs.chunk(NUM_MICROBATCHES), target.chunk(NUM_MICROBATCHES), strict=True
    ):
        loss = nn.functional.mse_loss(nn.Sequential(*whole)(part), wanted)
        (loss / NUM_MICROBATCHES).backward()  # type: ignore[no-untyped-call]  # torch's own
    measured = torch.load(tmp_path / "0.pt") | torch.load(tmp_path / "1.pt")
    for index, module in enumerate(whole):
        torch.testing.assert_close(measured[index], gradients(module))
