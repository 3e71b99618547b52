"""``torchrun -m crosspipe_ray.engine FILE``: rehearses a plan or trains a config, without Ray.

FILE is a plan (.json, .parquet) to rehearse with its links emulated, or a run's configuration
(.yaml) to profile, plan and train by. Emulated links need all ranks on one host.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import torch

from crosspipe_ray.config import load_config
from crosspipe_ray.engine.board import Board
from crosspipe_ray.engine.checks import check_same_data, complete
from crosspipe_ray.engine.device import rank_device
from crosspipe_ray.engine.links import emulated, shaped
from crosspipe_ray.engine.planning import link_profile_of, plan_of, problem_of
from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.setup import assignments, profile_run
from crosspipe_ray.engine.training_rank import TrainingRank
from crosspipe_ray.engine.transports import (
    CollectiveTransport,
    Transport,
    host_store,
    join_store,
)
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.errors import ConfigError, CrosspipeError
from crosspipe_ray.lowering import Program, lanes, lower
from crosspipe_ray.measured import StepReport, measured_timeline
from crosspipe_ray.plan import Plan, read_plan
from crosspipe_ray.report.console import rehearsed_line
from crosspipe_ray.report.prediction import predictions, predictions_markdown
from crosspipe_ray.timeline import Timeline

_TIMEOUT_S = 300.0


def main() -> int:
    """Runs this process's rank; exit codes are those of the ``crosspipe`` command."""
    options = _parse()
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run = _rehearse if options.file.suffix in (".json", ".parquet") else _train
    try:
        run(options, rank, num_ranks)
    except CrosspipeError as error:
        if rank == 0 or error.exit_code == 1:
            print(f"rank {rank}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torchrun -m crosspipe_ray.engine", description=__doc__)
    parser.add_argument(
        "file", type=Path, help="a plan (.json, .parquet) or a configuration (.yaml)"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of a rehearsal")
    parser.add_argument("--real-links", action="store_true", help="emulate none in a rehearsal")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def _rehearse(options: argparse.Namespace, rank: int, num_ranks: int) -> None:
    plan = read_plan(options.file)
    _check_num_ranks(num_ranks, len(plan.problem.ranks), options.file)
    programs = lower(plan.problem, plan.timeline)
    with ExitStack() as stack:
        board = Board(_store(rank), rank=rank, num_ranks=num_ranks)
        transport: Transport | None = _connect(stack, board, programs, torch.device("cpu"))
        if transport and not options.real_links:
            folder = _shared_folder(stack, board)
            transport = shaped(transport, plan.problem, clock_dir=folder)
        worker = RehearsalRank(plan.problem, programs[rank], transport, timeout_s=_TIMEOUT_S)
        measured = []
        for index in range(options.steps):
            board.start_together()
            measured.append(_print_step(board, plan, worker.step(index)))
        if rank == 0:
            clusters = [each.cluster for each in plan.problem.ranks]
            rows = predictions(plan.timeline, measured, clusters=clusters)
            print(predictions_markdown(rows))
        board.wait_for_all()  # nobody closes while another still receives
    board.leave()


def _train(options: argparse.Namespace, rank: int, num_ranks: int) -> None:
    config = complete(load_config(options.file, overrides=options.set))
    _check_num_ranks(num_ranks, len(config.cluster.rank_regions), options.file)
    device = rank_device(int(os.environ["LOCAL_RANK"]))
    with ExitStack() as stack:
        board = Board(_store(rank), rank=rank, num_ranks=num_ranks)
        profiles = board.gather(profile_run(config, device=device))
        plan = board.from_first(
            lambda: plan_of(config, problem_of(config, profiles, link_profile_of(config)))
        )
        assigned = assignments(config, plan)
        inner = _connect(stack, board, [assignment.program for assignment in assigned], device)
        folder = _shared_folder(stack, board)
        transport = emulated(inner, config, plan.problem, clock_dir=folder) if inner else None
        worker = TrainingRank(assigned[rank], transport, device=device)
        check_same_data(board.gather(worker.dataset_digest))
        for index in range(config.training.num_steps):
            _print_step(board, plan, worker.step(index))
        board.wait_for_all()
    board.leave()


def _check_num_ranks(actual: int, wanted: int, file: Path) -> None:
    if actual != wanted:
        raise ConfigError(f"{file}: has {wanted} ranks, torchrun started {actual}")


def _store(rank: int) -> TCPStore:
    """The store that torchrun's agent hosts; rank 0 does where ranks are started by hand."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return host_store(host, port=port, timeout_s=_TIMEOUT_S)
    return join_store(host, port, timeout_s=_TIMEOUT_S)


def _connect(
    stack: ExitStack, board: Board, programs: Sequence[Program], device: torch.device
) -> CollectiveTransport | None:
    """This rank's transport with all lanes of the programs, warmed; None for a single rank."""
    if board.num_ranks == 1:
        return None
    transport = CollectiveTransport(
        board.store,
        rank=board.rank,
        num_ranks=board.num_ranks,
        lanes=lanes(programs),
        device=device,
        timeout_s=_TIMEOUT_S,
    )
    stack.callback(transport.close)
    transport.warm(timeout_s=_TIMEOUT_S)
    return transport


def _shared_folder(stack: ExitStack, board: Board) -> Path:
    """A folder for the clocks of emulated channels, the same for all ranks of this host."""
    folder = Path(board.from_first(tempfile.mkdtemp))
    if board.rank == 0:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _print_step(board: Board, plan: Plan, report: StepReport) -> Timeline:
    """Rank 0 prints what all ranks measured."""
    reports = board.gather(report)
    measured = measured_timeline(each.record for each in reports)
    if board.rank == 0:
        losses = [loss for each in reports for loss in each.losses]
        loss = f", loss {fmean(losses):.4f}" if losses else ""
        print(rehearsed_line(report.step + 1, plan.timeline, measured) + loss, flush=True)
    return measured


if __name__ == "__main__":
    sys.exit(main())
