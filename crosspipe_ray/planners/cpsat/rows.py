"""One thing at a time, told to CP-SAT by orders of pairs and places in line.

The steps of a row follow each other, so the pairs of two rows lie on a staircase: if step i of the
one goes before step j of the other, so do all before i, and before all after j. With a literal for
each pair that time leaves open, and a clause for each stair, the solver learns of many at once.

Where all steps take equally long, rows merge into one: its k-th start is a variable of its own, and
step i with j steps of the other row before it is the (i + j)-th. That the k-th starts late is then
said in a word, whichever steps go before it: what the solver learns of one end of a row holds at
the other end, where intervals have it learn the same for every order of the middle again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, combinations, pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_MOST_OPEN = 8_000  # pairs of a machine; of more, intervals serve better

Orders = dict[tuple[int, int], Any]  # by step of the first row and step of the second


class Start(NamedTuple):
    """A variable and its window."""

    variable: Any
    earliest: int
    latest: int

    @classmethod
    def within(cls, model: cp_model.CpModel, earliest: int, latest: int) -> Start:
        """A new one; with an empty window the model has no solution."""
        variable = model.new_int_var(min(earliest, latest), latest, "")
        if earliest > latest:
            model.add(variable >= earliest)
        return cls(variable, earliest, latest)


@dataclass(frozen=True, slots=True)
class Row:
    """Steps that follow each other on a machine, all of the same duration."""

    starts: Sequence[Start]
    duration: int


def share(model: cp_model.CpModel, rows: Sequence[Row]) -> list[Start]:
    """Has a machine take the steps of its rows one at a time.

    Returns:
        The starts of merged rows, which are as late as the steps of the rows may be.
    """
    lines: Iterable[Row] = ()
    if sum(_num_open(*pair) for pair in combinations(rows, 2)) > _MOST_OPEN:
        model.add_no_overlap(_interval(model, row, start) for row in rows for start in row.starts)
    elif len({row.duration for row in rows}) == 1:
        _, *lines = accumulate(rows, partial(_merged, model))
    else:
        for first, second in combinations(rows, 2):
            _keep_apart(model, first, second)
    return list(chain.from_iterable(line.starts for line in lines))


def _num_open(first: Row, second: Row) -> int:
    """Pairs of which either may go first."""
    return int((_can_precede(first, second) & _can_precede(second, first).T).sum())


def _can_precede(first: Row, second: Row) -> NDArray[np.bool_]:
    """Whether time lets each step of the first row go before each of the second."""
    earliest = np.array([start.earliest for start in first.starts])
    latest = np.array([start.latest for start in second.starts])
    can_precede: NDArray[np.bool_] = earliest[:, None] + first.duration <= latest
    return can_precede


def _interval(model: cp_model.CpModel, row: Row, start: Start) -> Any:
    return model.new_fixed_size_interval_var(start.variable, row.duration, "")


def _keep_apart(model: cp_model.CpModel, first: Row, second: Row) -> None:
    for (i, j), is_before in _orders(model, first, second).items():
        one, other = first.starts[i], second.starts[j]
        _follow(model, one, first.duration, other, is_before)
        _follow(model, other, second.duration, one, _negated(is_before))


def _follow(
    model: cp_model.CpModel, before: Start, duration: int, after: Start, is_so: Any
) -> None:
    """If so, a step comes after another."""
    if is_so is not False and before.latest + duration > after.earliest:
        follows = model.add(after.variable >= before.variable + duration)
        follows.only_enforce_if(is_so)


def _merged(model: cp_model.CpModel, first: Row, second: Row) -> Row:
    """Two rows as one; of equal durations."""
    merged = _line(model, [*first.starts, *second.starts], first.duration)
    is_before = _orders(model, first, second)
    for i, start in enumerate(first.starts):
        is_ahead = [is_before[i, j] for j in range(len(second.starts))]
        _stand(model, start, merged.starts[i:], is_ahead)
    for j, start in enumerate(second.starts):
        is_ahead = [_negated(is_before[i, j]) for i in range(len(first.starts))]
        _stand(model, start, merged.starts[j:], is_ahead)
    return merged


def _line(model: cp_model.CpModel, starts: Sequence[Start], duration: int) -> Row:
    """The first start of all, the second, and so on."""
    earliest = accumulate(
        sorted(start.earliest for start in starts),
        lambda before, own: max(before + duration, own),
    )
    latest = accumulate(
        sorted((start.latest for start in starts), reverse=True),
        lambda after, own: min(after - duration, own),
    )
    windows = zip(earliest, reversed(list(latest)), strict=True)
    line = [Start.within(model, *window) for window in windows]
    for before, after in pairwise(line):
        model.add(after.variable >= before.variable + duration)
    return Row(line, duration)


def _stand(
    model: cp_model.CpModel, start: Start, line: Sequence[Start], is_ahead: Sequence[Any]
) -> None:
    """A step's place: as many of the other row go before it as it is not ahead of."""
    first = max((place + 1 for place, each in enumerate(is_ahead) if each is False), default=0)
    last = min(
        (place for place, each in enumerate(is_ahead) if each is True), default=len(is_ahead)
    )
    left_open = is_ahead[first:last]
    at_least = True, *map(_negated, left_open)
    at_most = *left_open, True
    for place, is_here_or_later, is_here_or_sooner in zip(
        line[first:], at_least, at_most, strict=False
    ):
        model.add(start.variable >= place.variable).only_enforce_if(is_here_or_later)
        model.add(start.variable <= place.variable).only_enforce_if(is_here_or_sooner)


def _orders(model: cp_model.CpModel, first: Row, second: Row) -> Orders:
    """Whether the step of the first row goes before that of the second: a literal, or known."""
    orders: Orders = {}
    can_precede = _can_precede(first, second).tolist()
    can_follow = _can_precede(second, first).T.tolist()
    for i, j in product(range(len(first.starts)), range(len(second.starts))):
        is_open = can_precede[i][j] and can_follow[i][j]
        orders[i, j] = model.new_bool_var("") if is_open else can_precede[i][j]
    for (i, j), is_before in orders.items():
        for implied in (orders.get((i - 1, j), True), orders.get((i, j + 1), True)):
            if is_before is not False and implied is not True:
                model.add_implication(is_before, implied)
    return orders


def _negated(value: Any) -> Any:
    return not value if isinstance(value, bool) else ~value
