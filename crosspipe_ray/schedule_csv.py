"""Schedules as the compute-only CSV of torch.distributed.pipelining."""

from __future__ import annotations

import csv
from pathlib import Path

from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, Op, parse_op
from crosspipe_ray.schedule import Schedule


def read_csv(path: Path) -> Schedule:
    """Reads a compute-only schedule as torch.distributed.pipelining writes it.

    A row per rank, an op per cell.

    Raises:
        ScheduleError: names the file and the cell.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise ScheduleError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ScheduleError(f"{path}: not CSV: {error}") from None
    if not rows:
        raise ScheduleError(f"{path}: empty; give each rank a row, and each op a cell")
    return Schedule.of(
        [_parse_cell(path, row, column, cell) for column, cell in enumerate(cells) if cell.strip()]
        for row, cells in enumerate(rows)
    )


def to_csv(schedule: Schedule) -> str:
    """The schedule as a compute-only CSV that torch.distributed.pipelining's runtime loads.

    Raises:
        ScheduleError: ops are split, for which it has no word.
    """
    if schedule.parts is not None:
        raise ScheduleError(
            "ops are split in parts, for which torch's CSV has no word; plan without max_sub_blocks"
        )
    return "".join(",".join(map(str, ops)) + "\n" for ops in schedule.ranks)


def _parse_cell(path: Path, row: int, column: int, cell: str) -> Op:
    try:
        op = parse_op(cell)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: rank {row}, cell {column}: {error}") from None
    if op.kind not in COMPUTE_KINDS:
        raise ScheduleError(
            f"{path}: rank {row}, cell {column}: '{op}' is no compute op (F, I, W or B)"
        )
    return op
