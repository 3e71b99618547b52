"""Losses and weights are plain PyTorch's, bit for bit, over schedules, ranks and transports."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from crosspipe_ray.columns import Parts
from crosspipe_ray.engine.setup import assignments
from crosspipe_ray.engine.transports import LoopbackHub, MixedTransport
from crosspipe_ray.engine.transports.streams import Credentials
from crosspipe_ray.ops import WHOLE, Kind, Op, Part, op_code
from crosspipe_ray.plan import Plan
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from crosspipe_ray.training.model import build_layers
from tests.contract.oracle import (
    METHODS,
    NUM_RANKS,
    Outcome,
    body,
    make_assignments,
    make_config,
    make_plan,
    together,
    train_rank,
)
from tests.contract.rank_processes import RankProcesses, run_body
from tests.contract.stream_pairs import proxied

TIMEOUT_S = 100


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(4, tmp_path_factory.mktemp("ranks"), checks_leaks=False)
    yield processes
    assert processes.stop() == "", "a rank writes to stderr"


def in_threads(data: Path, num_ranks: int, method: str, *, tie_embeddings: bool = False) -> Outcome:
    return run_in_threads(num_ranks, body(data, num_ranks, method, tie_embeddings=tie_embeddings))


def run_in_threads(num_ranks: int, run: partial[Outcome]) -> Outcome:
    hub = LoopbackHub(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(run_body, hub.transport(rank), run) for rank in range(num_ranks)]
        return together([future.result(TIMEOUT_S) for future in futures])


@pytest.mark.parametrize("method", METHODS)
def test_one_process_equals_plain_pytorch(data: Path, reference: Outcome, method: str) -> None:
    train_rank(make_assignments(data, 1, method), None).assert_equals(reference)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_ranks", NUM_RANKS[1:])
def test_loopback_equals_plain_pytorch(
    data: Path, reference: Outcome, method: str, num_ranks: int
) -> None:
    in_threads(data, num_ranks, method).assert_equals(reference)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_ranks", NUM_RANKS[1:])
def test_gloo_equals_plain_pytorch(
    rank_processes: RankProcesses, data: Path, reference: Outcome, method: str, num_ranks: int
) -> None:
    parts = rank_processes.run("plain", num_ranks, body(data, num_ranks, method))
    together(parts).assert_equals(reference)


@pytest.mark.parametrize("num_ranks", NUM_RANKS[1:])
def test_mixed_transports_equal_plain_pytorch(
    rank_processes: RankProcesses, data: Path, reference: Outcome, num_ranks: int
) -> None:
    parts = rank_processes.run("mixed", num_ranks, body(data, num_ranks, "greedy"))
    together(parts).assert_equals(reference)


def test_many_mixed_steps_end_with_the_losses_of_a_single_transport(
    rank_processes: RankProcesses, data: Path
) -> None:
    """A thousand by ``python -m tests.benchmarks.mixed_steps``."""
    many = body(data, 4, "zb-h1", num_steps=200)
    single, mixed = (together(rank_processes.run(kind, 4, many)) for kind in ("plain", "mixed"))
    assert len(mixed.losses) == 200
    mixed.assert_equals(single)


def test_connections_that_die_in_a_run_change_nothing(
    data: Path, reference: Outcome, credentials: Credentials
) -> None:
    """Forward over streams that are cut again and again, backward through memory."""
    hub = LoopbackHub(2)
    run = body(data, 2, "1f1b")
    with (
        proxied(credentials, repeat(10_000), num_streams=2) as (proxy, streams),
        ThreadPoolExecutor(2) as pool,
    ):
        mixed = [
            MixedTransport(
                {(0, 1): streams[rank], (1, 0): hub.transport(rank)}, rank=rank, num_ranks=2
            )
            for rank in range(2)
        ]
        futures = [pool.submit(run_body, transport, run) for transport in mixed]
        together([future.result(TIMEOUT_S) for future in futures]).assert_equals(reference)
        assert proxy.num_cuts >= 3


def with_split_weights(made: Plan) -> Plan:
    """Each W in 3 parts: one in its place, two just before the next W, all else in between."""
    codes, parts, lengths = [], [], []
    for ops in made.schedule.ranks:
        entries: list[tuple[Op, Part]] = []
        rest: list[tuple[Op, Part]] = []
        for op in ops:
            if op.kind is not Kind.W:
                entries.append((op, WHOLE))
                continue
            entries += [*rest, (op, Part(0, 1, 3))]
            rest = [(op, Part(1, 2, 3)), (op, Part(2, 3, 3))]
        entries += rest
        codes += [op_code(*op) for op, _ in entries]
        parts += [part for _, part in entries]
        lengths.append(len(entries))
    problem = made.problem.model_copy(update={"max_sub_blocks": 3})
    schedule = Schedule.of_codes(np.array(codes), lengths, parts=Parts.of(parts))
    validate(problem, schedule)
    timeline = simulate(problem, schedule)
    return replace(made, problem=problem, schedule=schedule, timeline=timeline)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_weights_in_parts_equal_plain_pytorch(
    data: Path, reference: Outcome, num_ranks: int
) -> None:
    config = make_config(data, num_ranks)
    split = with_split_weights(make_plan(config, "zb-h1"))
    run = partial(train_rank, assignments(config, split))
    run_in_threads(num_ranks, run).assert_equals(reference)


def test_a_tied_model_is_the_same_for_every_schedule(data: Path) -> None:
    alone = train_rank(make_assignments(data, 1, "1f1b", tie_embeddings=True), None)
    in_threads(data, 2, "zb-v", tie_embeddings=True).assert_equals(alone)
    in_threads(data, 4, "greedy", tie_embeddings=True)  # waves only: planned without complaint


def test_training_changes_every_weight(data: Path, reference: Outcome) -> None:
    config = make_config(data, 1)
    first = build_layers(config.model, 0, config.model.num_pipeline_layers, seed=config.seed)
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, reference.weights[name]), name
