"""The ops and messages of a plan as rows of a Parquet file, for plans of millions of ops.

Columns: rank, stage, kind, microbatch, start_ns, end_ns; messages also have dst and arrive_ns, and
their rank is the sender's. Ops stand rank after rank and in order, then come the messages in the
order of ``sends``. The other fields of the plan are JSON in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crosspipe_ray.columns import Ints, PerRank
from crosspipe_ray.errors import PlanError
from crosspipe_ray.files import new_file
from crosspipe_ray.ops import COMPUTE_KINDS, MAX_MICROBATCHES, MAX_STAGES, Kind, op_code, split_code
from crosspipe_ray.timeline import Messages, Spans

_METADATA = b"crosspipe_plan"
_ROWS_PER_GROUP = 1 << 20
_KINDS = pa.array([kind.name for kind in Kind])
_SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("stage", pa.int32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("microbatch", pa.int32()),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("dst", pa.int32()),
        ("arrive_ns", pa.int64()),
    ]
)
_OF_MESSAGES = ("dst", "arrive_ns")
# Of these, neighbouring rows differ by little.
_DELTAS = ("microbatch", "start_ns", "end_ns", "arrive_ns")
_FEW_VALUES = ["rank", "stage", "kind", "dst"]


def write_table(path: Path, metadata: str, ranks: PerRank[Spans], sends: Messages) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: the file.
        metadata: JSON of the plan's other fields.
        ranks: compute spans of each rank.
        sends: timed messages.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    options = {
        "compression": "zstd",
        "use_dictionary": _FEW_VALUES,
        "column_encoding": dict.fromkeys(_DELTAS, "DELTA_BINARY_PACKED"),
    }
    schema = _SCHEMA.with_metadata({_METADATA: metadata})
    with new_file(path) as part, pq.ParquetWriter(part, schema, **options) as writer:
        for which, block in ranks.blocks(_ROWS_PER_GROUP):
            codes, *times = block.flat.columns
            rank = np.repeat(which, np.diff(block.first))
            writer.write_table(_group(schema, codes, (rank, *times)))
        for begin in range(0, len(sends), _ROWS_PER_GROUP):
            codes, src, dst, *times, arrive_ns = sends[begin : begin + _ROWS_PER_GROUP].columns
            writer.write_table(_group(schema, codes, (src, *times, dst, arrive_ns)))


def read_metadata(path: Path) -> str:
    """JSON of the plan's other fields.

    Raises:
        PlanError: the file is no plan.
    """
    with _reading(path):
        metadata = pq.read_schema(path).metadata or {}
    if _METADATA not in metadata:
        raise PlanError(f"{path}: no plan: its metadata has no {_METADATA.decode()}")
    return str(metadata[_METADATA], "utf-8")


def read_table(path: Path, num_ranks: int) -> tuple[PerRank[Spans], Messages]:
    """The ops of each rank, and the messages.

    Args:
        path: the file.
        num_ranks: of the problem.

    Raises:
        PlanError: a column is missing, or something in it is no row of a plan; names it.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        missing = [name for name in _SCHEMA.names if name not in file.schema_arrow.names]
        if missing:
            raise PlanError(f"{path}: no column '{missing[0]}'")
        limits = {"rank": num_ranks, "stage": MAX_STAGES, "microbatch": MAX_MICROBATCHES}
        groups = [
            _columns(file.read_row_group(group, columns=_SCHEMA.names), limits)
            for group in range(file.num_row_groups)
        ]
    (rank, *spans), sends = (
        [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        for columns in zip(*groups, strict=True)
    )
    if np.any(rank[1:] < rank[:-1]):
        raise PlanError(f"{path}: ops do not stand rank after rank")
    lengths = np.bincount(rank, minlength=num_ranks)
    return PerRank.of_lengths(Spans(*spans), lengths.tolist()), Messages(*sends)


class _RowError(ValueError):
    """A row is none of a plan."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror or error}") from None
    except _RowError as error:
        raise PlanError(f"{path}: {error}") from None
    except pa.ArrowException as error:
        raise PlanError(f"{path}: not Parquet: {error}") from None


def _group(schema: Any, codes: Ints, others: tuple[Ints, ...]) -> Any:
    """A row group: rank, start and end of each row, for messages also dst and arrival."""
    stages, kinds, microbatches = split_code(codes)
    rank, start_ns, end_ns, *message = others
    named = pa.DictionaryArray.from_arrays(kinds.astype(np.int8), _KINDS)
    nothing = [pa.nulls(len(codes))] * len(_OF_MESSAGES)
    columns = [rank, stages, named, microbatches, start_ns, end_ns, *(message or nothing)]
    typed = [
        pa.array(column).cast(kind) for column, kind in zip(columns, schema.types, strict=True)
    ]
    return pa.Table.from_arrays(typed, schema=schema)


def _columns(group: Any, limits: Mapping[str, int]) -> tuple[list[Ints], list[Ints]]:
    """Of the ops of a row group: rank, and what Spans has; of the messages: what Messages has."""
    kinds = pc.index_in(group["kind"], value_set=_KINDS)
    if kinds.null_count:
        raise _RowError(f"column 'kind': a row has none of {', '.join(_KINDS.to_pylist())}")
    kind = kinds.to_numpy().astype(np.int64)
    rank, stage, microbatch, start_ns, end_ns = (
        _numbers(group, name, limits.get(name))
        for name in ("rank", "stage", "microbatch", "start_ns", "end_ns")
    )
    is_op = kind < len(COMPUTE_KINDS)
    sends = group.filter(pa.array(~is_op))
    dst, arrive_ns = _numbers(sends, "dst", limits["rank"]), _numbers(sends, "arrive_ns", None)
    common = rank, op_code(stage, kind, microbatch), start_ns, end_ns
    src, codes, *times = (column[~is_op] for column in common)
    return [column[is_op] for column in common], [codes, src, dst, *times, arrive_ns]


def _numbers(group: Any, name: str, limit: int | None) -> Ints:
    column = group[name]
    if column.null_count or not pa.types.is_integer(column.type):
        raise _RowError(f"column '{name}': a row has no whole number")
    numbers: Ints = column.to_numpy().astype(np.int64)
    wrong = (numbers < 0) if limit is None else (numbers < 0) | (numbers >= limit)
    if wrong.any():
        raise _RowError(f"column '{name}': {numbers[wrong][0]} is out of range")
    return numbers
