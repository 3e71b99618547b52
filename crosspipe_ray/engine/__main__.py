"""``torchrun -m crosspipe_ray.engine FILE``: rehearses a plan or trains a config, without Ray.

FILE is a plan (.json, .parquet) to rehearse with its links emulated, or a run's configuration
(.yaml) to profile, plan and train by. Emulated links need all ranks on one host. Lanes over streams
need CROSSPIPE_CREDENTIALS, a folder with the run's certificate and token, on every host.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.config import Config, load_config
from crosspipe_ray.engine.board import Board
from crosspipe_ray.engine.checks import check_before_start, check_same_data, complete
from crosspipe_ray.engine.clock_exchange import ClockWatch
from crosspipe_ray.engine.device import rank_device
from crosspipe_ray.engine.links import Emulation, emulation_of
from crosspipe_ray.engine.planning import link_profile_of, plan_of, problem_of
from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.setup import assignments, profile_run
from crosspipe_ray.engine.training_rank import TrainingRank
from crosspipe_ray.engine.transports import Transport, host_store, join_store
from crosspipe_ray.engine.transports.communicators import TCPStore
from crosspipe_ray.engine.transports.streams import RunSecrets
from crosspipe_ray.engine.wiring import Wiring, connected
from crosspipe_ray.errors import ConfigError, CrosspipeError
from crosspipe_ray.links.choice import carriers_of
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import StepReport, step_timeline
from crosspipe_ray.plan import Plan, read_plan
from crosspipe_ray.planners.pieces import shortest
from crosspipe_ray.program import lanes
from crosspipe_ray.report.console import rehearsed_line
from crosspipe_ray.report.prediction import rehearsal_markdown

_TIMEOUT_S = 300.0
_CREDENTIALS = "CROSSPIPE_CREDENTIALS"


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
        folder = _shared_folder(stack, board)
        wiring = Wiring(
            num_ranks=num_ranks,
            carriers=carriers_of(plan.problem),
            lanes=lanes(programs),
            timeout_s=_TIMEOUT_S,
            emulation=None if options.real_links else Emulation(plan.problem, folder),
        )
        transport = _connect(stack, board, wiring, torch.device("cpu"))
        worker = RehearsalRank(plan.problem, programs[rank], transport, timeout_s=_TIMEOUT_S)
        watch = ClockWatch(board, transport, timeout_s=_TIMEOUT_S)
        clocks, steps = watch.look(), []
        for index in range(options.steps):
            board.start_together()
            report = worker.step(index, is_last=index + 1 == options.steps)
            steps.append(_print_step(board, plan, report, clocks))
        clocks = watch.look()
        if rank == 0:
            measured = [step_timeline(reports, clocks) for reports in steps]
            print(rehearsal_markdown(plan, measured, clocks))
        board.wait_for_all()  # nobody closes while another still receives
    board.leave()


def _train(options: argparse.Namespace, rank: int, num_ranks: int) -> None:
    config = complete(load_config(options.file, overrides=options.set))
    _check_num_ranks(num_ranks, len(config.cluster.rank_regions), options.file)
    device = rank_device(int(os.environ["LOCAL_RANK"]))
    with ExitStack() as stack:
        board = Board(_store(rank), rank=rank, num_ranks=num_ranks)
        board.from_first(lambda: check_before_start(config))
        config, plan = _plan(board, config, device)
        assigned = assignments(config, plan)
        wiring = Wiring(
            num_ranks=num_ranks,
            carriers=carriers_of(plan.problem, config.cluster.wish),
            lanes=lanes(assignment.program for assignment in assigned),
            timeout_s=_TIMEOUT_S,
            streams_port=config.cluster.streams_port,
            emulation=emulation_of(config, plan.problem, _shared_folder(stack, board)),
        )
        transport = _connect(stack, board, wiring, device)
        worker = TrainingRank(assigned[rank], transport, device=device)
        check_same_data(board.gather(worker.dataset_digest))
        clocks = ClockWatch(board, transport, timeout_s=_TIMEOUT_S).look()
        num_steps = config.training.num_steps
        for index in range(num_steps):
            report = worker.step(index, is_last=index + 1 == num_steps)
            _print_step(board, plan, report, clocks)
        board.wait_for_all()
    board.leave()


def _plan(board: Board, config: Config, device: torch.device) -> tuple[Config, Plan]:
    """What rank 0 plans from the costs of all, and the run in the pieces of that plan."""

    def make(num_pieces: int) -> Plan:
        finer = config.in_pieces(num_pieces)
        profiles = board.gather(profile_run(finer, device=device))
        return board.from_first(
            lambda: plan_of(finer, problem_of(finer, profiles, link_profile_of(finer)))
        )

    num_pieces, plan = shortest(config.planner.pieces, make)
    return config.in_pieces(num_pieces), plan


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
    stack: ExitStack, board: Board, wiring: Wiring, device: torch.device
) -> Transport | None:
    """This rank's transport, warmed; None for a single rank."""
    if board.num_ranks == 1:
        return None
    if "streams" in wiring.transports:
        wiring = replace(wiring, secrets=_secrets())
    transport = connected(wiring, board.rank, store=board.store, device=device)
    stack.callback(transport.close)
    return transport


def _secrets() -> RunSecrets:
    folder = os.environ.get(_CREDENTIALS)
    if not folder:
        raise ConfigError(
            f"streams: {_CREDENTIALS} is not set; on every host it names a folder that `python -m "
            "crosspipe_ray.engine.transports.streams FOLDER` has made for this run"
        )
    return RunSecrets.read(Path(folder))


def _shared_folder(stack: ExitStack, board: Board) -> Path:
    """A folder for the clocks of emulated channels, the same for all ranks of this host."""
    folder = Path(board.from_first(tempfile.mkdtemp))
    if board.rank == 0:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _print_step(
    board: Board, plan: Plan, report: StepReport, clocks: Mapping[int, HostClock]
) -> list[StepReport]:
    """Rank 0 prints what all ranks measured, and all know it, each by its own clock."""
    reports = board.gather(report)
    if board.rank == 0:
        losses = [loss for each in reports for loss in each.losses]
        loss = f", loss {fmean(losses):.4f}" if losses else ""
        measured = step_timeline(reports, clocks)
        print(rehearsed_line(report.step + 1, plan.timeline, measured) + loss, flush=True)
    return reports


if __name__ == "__main__":
    sys.exit(main())
