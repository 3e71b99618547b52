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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate, combinations, pairwise, product
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_MOST_ROWS = 4  # of more, pairs are so many that intervals serve better

Pair = tuple[int, int]  # a step of the first row, and one of the second


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


def share(model: cp_model.CpModel, rows: Sequence[Row]) -> None:
    """Has a machine take the steps of its rows one at a time."""
    if len(rows) > _MOST_ROWS:
        model.add_no_overlap(_interval(model, row, start) for row in rows for start in row.starts)
    elif len({row.duration for row in rows}) == 1:
        reduce(partial(_merged, model), rows)
    else:
        for first, second in combinations(rows, 2):
            _keep_apart(model, first, second)


def _interval(model: cp_model.CpModel, row: Row, start: Start) -> Any:
    return model.new_fixed_size_interval_var(start.variable, row.duration, "")


def _keep_apart(model: cp_model.CpModel, first: Row, second: Row) -> None:
    for (i, j), is_before in _orders(model, first, second).items():
        one, other = first.starts[i], second.starts[j]
        if one.latest + first.duration > other.earliest:
            after = model.add(other.variable >= one.variable + first.duration)
            after.only_enforce_if(is_before)
        if other.latest + second.duration > one.earliest:
            after = model.add(one.variable >= other.variable + second.duration)
            after.only_enforce_if(~is_before)


def _merged(model: cp_model.CpModel, first: Row, second: Row) -> Row:
    """Two rows as one; of equal durations."""
    merged = _line(model, [*first.starts, *second.starts], first.duration)
    is_before = _orders(model, first, second)
    for i, start in enumerate(first.starts):
        is_ahead = [is_before[i, j] for j in range(len(second.starts))]
        _stand(model, start, merged.starts[i:], is_ahead)
    for j, start in enumerate(second.starts):
        is_ahead = [~is_before[i, j] for i in range(len(first.starts))]
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
    always = model.new_constant(1)
    at_least = always, *(~each for each in is_ahead)
    at_most = *is_ahead, always
    for place, is_here_or_later, is_here_or_sooner in zip(line, at_least, at_most, strict=False):
        if place.latest > start.earliest:
            model.add(start.variable >= place.variable).only_enforce_if(is_here_or_later)
        if place.earliest < start.latest:
            model.add(start.variable <= place.variable).only_enforce_if(is_here_or_sooner)


def _orders(model: cp_model.CpModel, first: Row, second: Row) -> dict[Pair, Any]:
    """Literals: the step of the first row goes before that of the second."""
    constants = model.new_constant(0), model.new_constant(1)
    orders: dict[Pair, Any] = {}
    for (i, one), (j, other) in product(enumerate(first.starts), enumerate(second.starts)):
        can_precede = one.earliest + first.duration <= other.latest
        can_follow = other.earliest + second.duration <= one.latest
        is_open = can_precede and can_follow
        orders[i, j] = model.new_bool_var("") if is_open else constants[can_precede]
    for (i, j), literal in orders.items():
        for implied in (orders.get((i - 1, j)), orders.get((i, j + 1))):
            if implied is not None and implied.index != literal.index:
                model.add_implication(literal, implied)
    return orders
