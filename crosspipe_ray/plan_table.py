"""The ops and messages of a plan as rows of a Parquet file, for plans of millions of ops.

Columns: rank, stage, kind, microbatch, start_ns, end_ns; messages also have dst and arrive_ns, and
their rank is the sender's; where ops are split, these have part_first, part_end and num_parts. Ops
stand rank after rank and in order, then come the messages in the order of ``sends``. The other
fields of the plan are JSON in the file's metadata.
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

from crosspipe_ray.columns import Ints, Parts, PerRank
from crosspipe_ray.errors import PlanError
from crosspipe_ray.files import new_file
from crosspipe_ray.ops import COMPUTE_KINDS, MAX_MICROBATCHES, MAX_STAGES, Kind, op_code, split_code
from crosspipe_ray.timeline import Messages, Spans

_METADATA = b"crosspipe_plan"
_ROWS_PER_GROUP = 1 << 20
_KINDS = pa.array([kind.name for kind in Kind])
_FIELDS = [
    ("rank", pa.int32()),
    ("stage", pa.int32()),
    ("kind", pa.dictionary(pa.int8(), pa.string())),
    ("microbatch", pa.int32()),
    ("start_ns", pa.int64()),
    ("end_ns", pa.int64()),
    ("dst", pa.int32()),
    ("arrive_ns", pa.int64()),
]
_OF_PARTS = ("part_first", "part_end", "num_parts")
# Of these, neighbouring rows differ by little.
_DELTAS = ("microbatch", "start_ns", "end_ns", "arrive_ns")
_FEW_VALUES = ["rank", "stage", "kind", "dst"]


def write_table(
    path: Path,
    metadata: str,
    ranks: PerRank[Spans],
    parts: PerRank[Parts] | None,
    sends: Messages,
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: the file.
        metadata: JSON of the plan's other fields.
        ranks: compute spans of each rank.
        parts: of the spans; None: they are whole ops.
        sends: timed messages.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    schema = _schema(has_parts=parts is not None).with_metadata({_METADATA: metadata})
    options = {
        "compression": "zstd",
        "use_dictionary": _FEW_VALUES,
        "column_encoding": dict.fromkeys(_DELTAS, "DELTA_BINARY_PACKED"),
    }
    with new_file(path) as part, pq.ParquetWriter(part, schema, **options) as writer:
        for which, group in ranks.blocks(_ROWS_PER_GROUP):
            codes, start_ns, end_ns = group.flat.columns
            columns = {"rank": np.repeat(which, np.diff(group.first))}
            if parts is not None:
                rows = slice(parts.first[which.start], parts.first[which.stop])
                columns |= dict(zip(_OF_PARTS, parts.flat[rows].columns, strict=True))
            writer.write_table(_group(schema, codes, start_ns, end_ns, columns))
        for begin in range(0, len(sends), _ROWS_PER_GROUP):
            block = sends[begin : begin + _ROWS_PER_GROUP]
            codes, src, dst, start_ns, end_ns, arrive_ns = block.columns
            columns = {"rank": src, "dst": dst, "arrive_ns": arrive_ns}
            writer.write_table(_group(schema, codes, start_ns, end_ns, columns))


def read_metadata(path: Path) -> str:
    """JSON of the plan's other fields.

    Raises:
        PlanError: the file is no plan.
    """
    with _reading(path):
        metadata = pq.read_schema(path).metadata or {}
    if _METADATA not in metadata:
        raise PlanError(f"{path}: no plan: its metadata has no {_METADATA.decode()}")
    try:
        return str(metadata[_METADATA], "utf-8")
    except UnicodeDecodeError:
        raise PlanError(f"{path}: metadata {_METADATA.decode()}: no text in UTF-8") from None


def read_table(path: Path, num_ranks: int) -> tuple[PerRank[Spans], Parts | None, Messages]:
    """The ops of each rank, what parts they are, and the messages.

    Args:
        path: the file.
        num_ranks: of the problem.

    Raises:
        PlanError: a column is missing, or something in it is no row of a plan; names it.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        schema = _schema(has_parts=_OF_PARTS[0] in file.schema_arrow.names)
        missing = [name for name in schema.names if name not in file.schema_arrow.names]
        if missing:
            raise PlanError(f"{path}: no column '{missing[0]}'")
        limits = {"rank": num_ranks, "stage": MAX_STAGES, "microbatch": MAX_MICROBATCHES}
        groups = [
            _columns(file.read_row_group(group, columns=schema.names), limits)
            for group in range(file.num_row_groups)
        ]
    if not groups:
        raise PlanError(f"{path}: has no ops")
    (rank, *spans), parts, sends = (
        [np.concatenate(pieces) for pieces in zip(*columns, strict=True)]
        for columns in zip(*groups, strict=True)
    )
    if np.any(rank[1:] < rank[:-1]):
        raise PlanError(f"{path}: ops do not stand rank after rank")
    ranks = PerRank.of_lengths(Spans(*spans), np.bincount(rank, minlength=num_ranks).tolist())
    return ranks, Parts(*parts) if parts else None, Messages(*sends)


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
        raise PlanError(f"{path}: not the Parquet of a plan: {error}") from None


def _schema(*, has_parts: bool) -> Any:
    parts = [(name, pa.int32()) for name in _OF_PARTS]
    return pa.schema([*_FIELDS, *(parts if has_parts else [])])


def _group(
    schema: Any, codes: Ints, start_ns: Ints, end_ns: Ints, others: Mapping[str, Ints]
) -> Any:
    """A row group; what is not given is empty."""
    stages, kinds, microbatches = split_code(codes)
    columns = {
        "stage": stages,
        "kind": pa.DictionaryArray.from_arrays(kinds.astype(np.int8), _KINDS),
        "microbatch": microbatches,
        "start_ns": start_ns,
        "end_ns": end_ns,
        **others,
    }
    arrays = [
        pa.array(columns[field.name]).cast(field.type)
        if field.name in columns
        else pa.nulls(len(codes), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _columns(group: Any, limits: Mapping[str, int]) -> tuple[list[Ints], list[Ints], list[Ints]]:
    """Of the ops of a row group: rank, and what Spans has; what Parts has; what Messages has."""
    kinds = pc.index_in(group["kind"], value_set=_KINDS)
    if kinds.null_count:
        raise _RowError(f"column 'kind': a row has none of {', '.join(_KINDS.to_pylist())}")
    kind = kinds.to_numpy().astype(np.int64)
    rank, stage, microbatch, start_ns, end_ns = (
        _numbers(group, name, limits.get(name))
        for name in ("rank", "stage", "microbatch", "start_ns", "end_ns")
    )
    is_op = kind < len(COMPUTE_KINDS)
    ops, sends = group.filter(pa.array(is_op)), group.filter(pa.array(~is_op))
    parts = [_numbers(ops, name, None) for name in _OF_PARTS if name in ops.column_names]
    dst, arrive_ns = _numbers(sends, "dst", limits["rank"]), _numbers(sends, "arrive_ns", None)
    common = rank, op_code(stage, kind, microbatch), start_ns, end_ns
    src, codes, *times = (column[~is_op] for column in common)
    return [column[is_op] for column in common], parts, [codes, src, dst, *times, arrive_ns]


def _numbers(group: Any, name: str, limit: int | None) -> Ints:
    column = group[name]
    if column.null_count or not pa.types.is_integer(column.type):
        raise _RowError(f"column '{name}': a row has no whole number")
    numbers: Ints = column.to_numpy().astype(np.int64)
    wrong = (numbers < 0) if limit is None else (numbers < 0) | (numbers >= limit)
    if wrong.any():
        raise _RowError(f"column '{name}': {numbers[wrong][0]} is out of range")
    return numbers
