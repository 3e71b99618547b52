"""Ops in parts: what there is to know of each stage, kind and part, once for all microbatches.

A part's share of an op's time and memory is by cumulative floor, so that the shares of an op add
up to it. A whole op is the part 0 to 1 of 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crosspipe_ray.columns import Ints, Parts
from crosspipe_ray.ops import MICROBATCH_BITS, MICROBATCH_MASK, Part


def share_of(total: int, part: Part) -> int:
    """What a part has of an op's time or bytes.

    >>> [share_of(10, Part(part, part + 1, 4)) for part in range(4)]
    [2, 3, 2, 3]
    """
    return total * part.end // part.num_parts - total * part.first // part.num_parts


@dataclass(frozen=True, slots=True)
class PartRows:
    """Rows of whole ops (`ops.op_row`), and after them those of the parts in use.

    Attributes:
        codes: per op of the schedule, its row and microbatch, as in `ops.op_code`.
        whole: per row, the row of the whole op.
        parts: per row.
    """

    codes: Ints
    whole: Ints
    parts: Parts

    def share(self, total: Ints) -> Ints:
        """The rows' shares of what whole ops have.

        Args:
            total: per row of whole ops.
        """
        first, end, count = self.parts.columns
        each = total[self.whole]
        share: Ints = each * end // count - each * first // count
        return share

    @property
    def is_first(self) -> Ints:
        """Per row, whether it begins its op."""
        is_first: Ints = self.parts.columns[0] == 0
        return is_first

    @property
    def is_last(self) -> Ints:
        """Per row, whether it ends its op."""
        _, end, count = self.parts.columns
        is_last: Ints = end == count
        return is_last


def part_rows(codes: Ints, parts: Parts | None, num_rows: int) -> PartRows:
    """The rows that a schedule uses.

    Args:
        codes: of its ops.
        parts: of its ops; None: all are whole.
        num_rows: rows of whole ops.
    """
    whole = np.arange(num_rows)
    ones = np.ones(num_rows, dtype=np.int64)
    if parts is None:
        return PartRows(codes, whole, Parts(0 * ones, ones, ones))
    used, row = np.unique(
        np.stack([codes >> MICROBATCH_BITS, *parts.columns]), axis=1, return_inverse=True
    )
    columns = np.concatenate([np.stack([whole, 0 * ones, ones, ones]), used], axis=1)
    part_codes = ((num_rows + row) << MICROBATCH_BITS) + (codes & MICROBATCH_MASK)
    return PartRows(part_codes, columns[0], Parts(*columns[1:]))
