"""What codecs of links cost, and what they do to a loss.

    python -m tests.benchmarks.codecs                             speed by message size
    python -m tests.benchmarks.codecs --train int8 --steps 40     held-out loss of the demo model

The second trains `cluster_configs/demo.yaml` (needs its data: `make demo`) on four ranks that are
threads here, 1F1B, with the codec on all three borders; the same bits on any other transport.
``int8-alone`` is int8 without error feedback.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from unittest import mock

import torch
from torch import Tensor

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.config import Config, load_config
from crosspipe_ray.engine import message_codecs
from crosspipe_ray.engine.checks import complete
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import problem_of
from crosspipe_ray.engine.setup import assignments
from crosspipe_ray.engine.tensor_codecs import decode, encode, new_residual
from crosspipe_ray.engine.training_rank import Assignment, TrainingRank
from crosspipe_ray.engine.transports import LoopbackHub, Transport
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan

_CONFIG = Path("cluster_configs/demo.yaml")
_NUM_RANKS = 4
_MIB = 1024 * 1024
_SIZES = (_MIB // 2, 4 * _MIB, 64 * _MIB)
_REPEATS = 9
_KINDS: tuple[CodecKind, ...] = ("bf16", "int8")
# Any costs will do: the order of the ops is 1F1B's, and it changes no bit.
_COSTS = LayerCosts(1e4, 1e4, 1e4, 0, 0, 512 * 1024, 0, 0)


def main() -> None:
    """Prints the table, or trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=["none", *_KINDS, "int8-alone"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train is None:
        _print_rates()
        return
    codec, alone = arguments.train.removesuffix("-alone"), arguments.train.endswith("-alone")
    with mock.patch.object(message_codecs, "encode", _encode_alone if alone else encode):
        held_out = _train(codec, arguments.steps, arguments.seed)
    print(f"{arguments.train}, seed {arguments.seed}: held-out {held_out:.4f} nats per token")


def _encode_alone(tensor: Tensor, kind: CodecKind, *, residual: Tensor | None = None) -> Tensor:  # noqa: ARG001 - what this leaves out
    return encode(tensor, kind)


def _print_rates() -> None:
    print("| message | codec | encode | encode, feedback | decode |\n|---|---|---|---|---|")
    for num_bytes in _SIZES:
        tensor = torch.randn(num_bytes // 4)
        residual = new_residual(len(tensor), tensor.device)
        shape, dtype = tuple(tensor.shape), tensor.dtype
        for kind in _KINDS:
            encoded = encode(tensor, kind)
            rates = [
                num_bytes / _best_s(way) / 1e9
                for way in (
                    partial(encode, tensor, kind),
                    partial(encode, tensor, kind, residual=residual),
                    partial(decode, encoded, kind, shape=shape, dtype=dtype),
                )
            ]
            texts = " | ".join(f"{rate:.1f} GB/s" for rate in rates)
            print(f"| {num_bytes / _MIB:g} MiB | {kind} | {texts} |", flush=True)


def _best_s(run: Callable[[], object]) -> float:
    times_s = []
    for _ in range(_REPEATS):
        start_s = time.process_time()
        run()
        times_s.append(time.process_time() - start_s)
    return min(times_s)


def _train(codec: str, num_steps: int, seed: int) -> float:
    """Held-out loss after training."""
    config = _config(codec, num_steps, seed)
    assigned = assignments(config, _plan(config))
    hub = LoopbackHub(_NUM_RANKS)
    with ThreadPoolExecutor(_NUM_RANKS) as pool:
        ranks = [
            pool.submit(_train_rank, assignment, hub.transport(rank), num_steps)
            for rank, assignment in enumerate(assigned)
        ]
        return ranks[-1].result()


def _config(codec: str, num_steps: int, seed: int) -> Config:
    regions = [{"name": f"region{rank}", "num_ranks": 1} for rank in range(_NUM_RANKS)]
    links = [
        {"src": src["name"], "dst": dst["name"], "codec": codec} for src, dst in pairwise(regions)
    ]
    overrides = {
        "seed": seed,
        "training.num_steps": num_steps,
        "cluster.regions": regions,
        "cluster.links": links,
        "cluster.emulate_links": False,
    }
    return complete(load_config(_CONFIG, overrides=[f"{k}={v}" for k, v in overrides.items()]))


def _plan(config: Config) -> Plan:
    return plan(problem_of(config, [[_COSTS] * 3] * _NUM_RANKS), method="1f1b")


def _train_rank(assignment: Assignment, transport: Transport, num_steps: int) -> float:
    """The held-out loss, where the rank has the last stage; else 0."""
    try:
        rank = TrainingRank(assignment, transport, device=torch.device("cpu"))
        for index in range(num_steps):
            rank.step(index)
        return fmean(rank.evaluate() or [0.0])
    finally:
        transport.close()


if __name__ == "__main__":
    main()
