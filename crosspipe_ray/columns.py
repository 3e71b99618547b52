"""Rows of a schedule or timeline kept as columns of integers, for plans of millions of ops.

To a reader they are sequences of ops, spans or messages like any other; a row becomes an object
when it is read. Loops over many rows work on the columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.ops import Kind, Op, Part, op_code, split_code

Ints = NDArray[np.int64]
RowT = TypeVar("RowT")
ColumnsT = TypeVar("ColumnsT", bound="Columns[Any]")
_KINDS = tuple(Kind)
NO_INTS: Ints = np.empty(0, dtype=np.int64)


class Columns(Sequence[RowT]):
    """A sequence of rows. It equals a tuple of equal rows, and hashes like one."""

    __slots__ = ("columns",)

    def __init__(self, *columns: Ints) -> None:
        self.columns = columns

    @abstractmethod
    def __iter__(self) -> Iterator[RowT]:
        """Makes the rows."""

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, which: int) -> RowT: ...
    @overload
    def __getitem__(self: ColumnsT, which: slice) -> ColumnsT: ...
    def __getitem__(self, which: int | slice) -> Any:
        if isinstance(which, slice):
            return type(self)(*(column[which] for column in self.columns))
        position = range(len(self))[index(which)]
        return next(iter(self[position : position + 1]))

    def __reversed__(self) -> Iterator[RowT]:
        return iter(self[::-1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, tuple):
            return tuple(self) == other
        if type(other) is not type(self):
            return NotImplemented
        return all(map(np.array_equal, self.columns, other.columns))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"


class PerRank(Sequence[ColumnsT]):
    """What the ranks have, one after the other in the same columns; rank by rank to a reader.

    Attributes:
        flat: the rows of all ranks.
        first: per rank and one more, where its rows begin.
    """

    __slots__ = ("first", "flat")

    def __init__(self, flat: ColumnsT, first: Ints) -> None:
        self.flat = flat
        self.first = first

    @classmethod
    def of_lengths(cls, flat: ColumnsT, lengths: Sequence[int]) -> PerRank[ColumnsT]:
        """Cuts rows that stand rank after rank."""
        return cls(flat, np.cumsum([0, *lengths], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, which: int) -> ColumnsT: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[ColumnsT, ...]: ...
    def __getitem__(self, which: int | slice) -> ColumnsT | tuple[ColumnsT, ...]:
        if isinstance(which, slice):
            return tuple(self[rank] for rank in range(len(self))[which])
        rank = range(len(self))[index(which)]
        rows: ColumnsT = self.flat[self.first[rank] : self.first[rank + 1]]
        return rows

    def blocks(self, num_rows: int = 1 << 20) -> Iterator[tuple[range, PerRank[ColumnsT]]]:
        """Ranks in groups of about that many rows, so that intermediate arrays stay small."""
        begin = 0
        while begin < len(self):
            most = self.first[begin] + num_rows
            end = max(begin + 1, int(np.searchsorted(self.first, most, side="right")) - 1)
            first = self.first[begin : end + 1]
            yield range(begin, end), PerRank(self.flat[first[0] : first[-1]], first - first[0])
            begin = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, tuple):
            return tuple(self) == other
        if type(other) is not type(self):
            return NotImplemented
        return np.array_equal(self.first, other.first) and self.flat == other.flat

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"PerRank({list(self)})"


def most_per_rank(values: Ints, first: Ints) -> list[int]:
    """The highest value of each rank, at least 0.

    Args:
        values: one per row.
        first: as of PerRank.
    """
    found = np.zeros(len(first) - 1, dtype=np.int64)
    has_rows = first[:-1] < first[1:]
    if has_rows.any():
        found[has_rows] = np.maximum.reduceat(values, first[:-1][has_rows])
    most: list[int] = np.maximum(found, 0).tolist()
    return most


class Ops(Columns[Op]):
    """Ops by their codes (`ops.op_code`)."""

    __slots__ = ()

    def __init__(self, codes: Ints) -> None:
        super().__init__(codes)

    @classmethod
    def of(cls, ops: Iterable[Op]) -> Ops:
        """Columns of any ops."""
        if isinstance(ops, Ops):
            return ops
        return cls(np.array([op_code(*op) for op in ops], dtype=np.int64))

    @property
    def codes(self) -> Ints:
        """One code per op."""
        return self.columns[0]

    @property
    def stages(self) -> list[int]:
        """The stages that there are, in order."""
        stages: list[int] = np.unique(split_code(self.codes)[0]).tolist()
        return stages

    @property
    def kinds(self) -> set[Kind]:
        """The kinds that there are."""
        return {_KINDS[kind] for kind in np.unique(split_code(self.codes)[1])}

    @property
    def last_microbatch(self) -> int:
        """The highest microbatch; 0 where there is none."""
        return int(split_code(self.codes)[2].max(initial=0))

    def __iter__(self) -> Iterator[Op]:
        stages, kinds, microbatches = split_code(self.codes)
        numbers: list[int | None] = microbatches.tolist()
        for position in np.flatnonzero(kinds >= Kind.UNSHARD):
            numbers[position] = None
        named = map(_KINDS.__getitem__, kinds.tolist())
        return map(Op._make, zip(stages.tolist(), named, numbers, strict=True))


class Parts(Columns[Part]):
    """What parts of their ops the entries of a schedule are."""

    __slots__ = ()

    def __init__(self, first: Ints, end: Ints, num_parts: Ints) -> None:
        super().__init__(first, end, num_parts)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Parts:
        """Columns of any parts."""
        if isinstance(parts, Parts):
            return parts
        return cls(*np.array(list(parts), dtype=np.int64).reshape(-1, 3).T)

    def __iter__(self) -> Iterator[Part]:
        return map(Part, *(column.tolist() for column in self.columns))
