"""The oracle: a small run, by plain PyTorch and by any plan; losses and weights are equal bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from crosspipe_ray.config import Config
from crosspipe_ray.engine.checks import complete
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import problem_of
from crosspipe_ray.engine.setup import assignments
from crosspipe_ray.engine.training_rank import Assignment, TrainingRank
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.training.data import TokenDataset
from crosspipe_ray.training.model import build_layers, next_token_loss
from crosspipe_ray.training.optimizer import (
    build_optimizer,
    clip_factor,
    learning_rate,
    scale_gradients,
    set_learning_rate,
    squared_norms,
)
from crosspipe_ray.training.prepare import prepare
from crosspipe_ray.training.tokens import load_tokenizer

NUM_STEPS = 3
METHODS = ("1f1b", "zb-h1", "zb-v", "greedy")
NUM_RANKS = (1, 2, 4)
# Any costs will do: they only decide the order of the ops.
_COSTS = LayerCosts(
    forward_us=1000,
    backward_input_us=1300,
    backward_weight_us=500,
    activation_bytes=1000,
    freed_by_backward_input_bytes=300,
    output_bytes=4096,
    weight_bytes=0,
    optimizer_bytes=0,
)


@dataclass(frozen=True)
class Outcome:
    """Losses of every microbatch of every step, held-out losses, and the final weights."""

    losses: list[tuple[float, ...]]
    held_out: tuple[float, ...]
    weights: dict[str, torch.Tensor]

    def assert_equals(self, other: Outcome) -> None:
        assert self.losses == other.losses
        assert self.held_out == other.held_out
        assert self.weights.keys() == other.weights.keys()
        differing = [
            n for n, tensor in self.weights.items() if not torch.equal(tensor, other.weights[n])
        ]
        assert not differing


def prepare_data(folder: Path) -> Path:
    """A dataset of a few kilobytes."""
    text = folder / "text"
    text.mkdir()
    for number in range(8):
        words = " ".join(f"word{number * index % 17}" for index in range(200))
        (text / f"{number}.txt").write_text(words)
    prepare([text], folder / "tokens", tokenizer=load_tokenizer("bytes"), suffixes=(".txt",))
    return folder / "tokens"


def make_config(
    data: Path, num_ranks: int, *, tie_embeddings: bool = False, codec: str = "none"
) -> Config:
    """A run with links between two regions, or one region for a single rank."""
    names = ["us", "eu"] if num_ranks > 1 else ["us"]
    regions = [{"name": name, "num_ranks": num_ranks // len(names)} for name in names]
    link = {"src": "us", "dst": "eu", "latency_us": 2000, "codec": codec}
    links = [link] if num_ranks > 1 else []
    raw = {
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 6,
            "num_heads": 4,
            "num_kv_heads": 2,
            "tie_embeddings": tie_embeddings,
        },
        "data": {"path": data, "sequence_length": 16},
        "training": {
            "num_steps": NUM_STEPS,
            "batch_size": 8,
            "num_microbatches": 4,
            "learning_rate": 0.01,
            "gradient_clip_norm": 0.5,
            "num_evaluation_microbatches": 2,
        },
        "cluster": {"regions": regions, "links": links, "timeout_s": 60},
        "planner": {"time_limit_s": 1.0},
    }
    return complete(Config.model_validate(raw))


def make_plan(config: Config, method: str) -> Plan:
    """A plan on made-up costs; deterministic."""
    costs = [[_COSTS] * 3] * len(config.cluster.rank_regions)
    return plan(problem_of(config, costs), method=method, budget=Budget(60.0, 20, 0))


def make_assignments(
    data: Path, num_ranks: int, method: str, **options: Any
) -> tuple[Assignment, ...]:
    """What each rank has to do."""
    config = make_config(data, num_ranks, **options)
    return assignments(config, make_plan(config, method))


def train_rank(
    assigned: tuple[Assignment, ...], transport: Transport | None, *, num_steps: int = NUM_STEPS
) -> Outcome:
    """One rank's part of the run; a body for any runner of ranks."""
    rank = transport.rank if transport else 0
    worker = TrainingRank(assigned[rank], transport, device=torch.device("cpu"))
    losses = [
        worker.step(index, is_last=index + 1 == num_steps).losses for index in range(num_steps)
    ]
    return Outcome(losses, worker.evaluate(), worker.state_dict())


def body(
    data: Path, num_ranks: int, method: str, *, num_steps: int = NUM_STEPS, **options: Any
) -> partial[Outcome]:
    """`train_rank` for a runner that passes nothing but the transport."""
    assigned = make_assignments(data, num_ranks, method, **options)
    return partial(train_rank, assigned, num_steps=num_steps)


def together(parts: list[Outcome]) -> Outcome:
    """The run's outcome from its ranks': the last stage's losses, everybody's weights."""
    last = next(part for part in parts if part.losses[0])
    weights = {name: tensor for part in parts for name, tensor in part.weights.items()}
    return Outcome(last.losses, last.held_out, weights)


def plain_pytorch(data: Path) -> Outcome:
    """The same run by autograd with gradient accumulation, nothing of the engine in it."""
    torch.set_num_threads(1)
    config = make_config(data, 1)
    training = config.training
    model = build_layers(config.model, 0, config.model.num_pipeline_layers, seed=config.seed)
    optimizer = build_optimizer(model.named_parameters(), training)
    train = TokenDataset(data, split="train", sequence_length=16).batches(
        batch_size=8, num_microbatches=4, seed=config.seed
    )
    losses = []
    for step in range(NUM_STEPS):
        model.zero_grad()
        step_losses = []
        for microbatch in range(4):
            loss = next_token_loss(
                model(train.inputs(step, microbatch)), train.labels(step, microbatch)
            )
            (loss / 4).backward()  # type: ignore[no-untyped-call]  # torch's own
            step_losses.append(loss.item())
        losses.append(tuple(step_losses))
        factor = clip_factor(squared_norms(model.parameters()), training.gradient_clip_norm)
        scale_gradients(model.parameters(), factor)
        set_learning_rate(optimizer, learning_rate(step, training))
        optimizer.step()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Outcome(losses, _held_out(model, data, config), weights)


@torch.no_grad()
def _held_out(model: torch.nn.Module, data: Path, config: Config) -> tuple[float, ...]:
    batches = TokenDataset(data, split="validation", sequence_length=16).batches(
        batch_size=4, num_microbatches=2, seed=config.seed
    )
    return tuple(
        next_token_loss(model(batches.inputs(0, microbatch)), batches.labels(0, microbatch)).item()
        for microbatch in range(2)
    )
