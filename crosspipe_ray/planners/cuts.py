"""Where a row of layers is cut into parts of about equal work, within what each may hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# What a part weighs, by its two borders. Those of all parts are made one at a time, as there may be
# a thousand parts with a million pairs of borders.
_Matrix = NDArray[np.float64]


def balanced_cuts(
    work: Sequence[float],
    num_parts: int,
    *,
    shares: Sequence[float] | None = None,
    held_bytes: Sequence[int] | None = None,
    limits_bytes: Sequence[int] | None = None,
) -> list[int]:
    """Cuts a row of layers into parts so that the heaviest part is as light as possible.

    Among those cuts, the one whose parts have the least sum of squares, so that no part is left
    light in vain. Memory goes before work: no part exceeds its limit by more than it must.

    Args:
        work: per layer.
        num_parts: at most as many as layers.
        shares: per part, how much it is to get; its weight is its work by its share. Default: all
            the same.
        held_bytes: per layer.
        limits_bytes: per part, how much its layers may hold.

    Returns:
        ``num_parts + 1`` borders, from 0 to the number of layers.

    >>> balanced_cuts([1, 1, 1, 1, 1, 5], 3)
    [0, 2, 5, 6]
    >>> balanced_cuts([1, 1, 1, 1, 1, 1], 2, shares=[1, 2])
    [0, 2, 6]
    >>> balanced_cuts([1, 1, 1, 1], 2, held_bytes=[9, 9, 9, 9], limits_bytes=[10, 30])
    [0, 1, 4]
    """
    shares = shares or (1.0,) * num_parts
    limits = limits_bytes or (0,) * num_parts
    work_of, held_of = _of_parts(work), _of_parts(held_bytes or [0] * len(work))
    excess = _lightest(np.maximum(held_of - limit, 0) for limit in limits)

    def weights() -> Iterator[_Matrix]:
        for share, limit in zip(shares, limits, strict=True):
            yield np.where(held_of - limit <= excess, work_of / share, np.inf)

    heaviest = _lightest(weights())
    return _least(np.where(weight <= heaviest, weight**2, np.inf) for weight in weights())


def _of_parts(row: Sequence[float]) -> _Matrix:
    """Sums between any two borders of a row; infinite where nothing is between them."""
    border = np.concatenate([[0.0], np.cumsum(row)])
    return np.where(np.tri(len(border), dtype=bool), np.inf, border - border[:, None])


def _lightest(weights: Iterator[_Matrix]) -> float:
    """The least weight of the heaviest part: a shortest path over the borders."""
    heaviest = next(weights)[0]
    for weight in weights:
        heaviest = np.maximum(heaviest[:, None], weight).min(axis=0)
    return float(heaviest[-1])


def _least(weights: Iterator[_Matrix]) -> list[int]:
    """The borders with the least sum of weights: another shortest path."""
    sums, arrivals = next(weights)[0], []
    for weight in weights:
        through = sums[:, None] + weight
        arrivals.append(through.argmin(axis=0))
        sums = through.min(axis=0)
    cuts = [len(sums) - 1]
    for came_from in reversed(arrivals):
        cuts.append(int(came_from[cuts[-1]]))
    return [0, *reversed(cuts)]
