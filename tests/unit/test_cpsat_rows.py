"""A machine takes the steps of its rows one at a time, and in every order in which it can."""

from itertools import accumulate, pairwise
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from crosspipe_ray.planners.cpsat import rows as module
from crosspipe_ray.planners.cpsat.rows import Row, Start, share


class Timed(NamedTuple):
    """A row that starts at given times, and the room of each step before and after."""

    duration: int
    times: tuple[int, ...]
    early: int
    late: int


DURATIONS = st.integers(1, 3)


@st.composite
def timed(draw: st.DrawFn, durations: st.SearchStrategy[int] = DURATIONS) -> Timed:
    duration = draw(durations)
    pauses = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    first, *others = accumulate(pauses, lambda before, pause: before + duration + pause)
    room = st.one_of(st.just(0), st.integers(0, 9))
    return Timed(duration, (first, *others), draw(room), draw(room))


def rows_of(row: st.SearchStrategy[Timed]) -> st.SearchStrategy[list[Timed]]:
    return st.integers(1, 5).flatmap(lambda num: st.lists(row, min_size=num, max_size=num))


def is_possible(rows: list[Timed]) -> bool:
    model = cp_model.CpModel()
    shared = []
    for row in rows:
        starts = [Start.within(model, at - row.early, at + row.late) for at in row.times]
        for start, at in zip(starts, row.times, strict=True):
            model.add(start.variable == at)
        shared.append(Row(starts, row.duration))
    share(model, shared)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    return solver.solve(model) == cp_model.OPTIMAL


def do_overlap(rows: list[Timed]) -> bool:
    spans = sorted((at, at + row.duration) for row in rows for at in row.times)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


@settings(max_examples=500)
@given(rows_of(timed()))
def test_steps_may_start_so_unless_they_overlap(rows: list[Timed]) -> None:
    assert is_possible(rows) is not do_overlap(rows)


@given(rows_of(timed()))
def test_steps_of_many_pairs_may_too(rows: list[Timed]) -> None:
    with patch.object(module, "_MOST_OPEN", -1):
        assert is_possible(rows) is not do_overlap(rows)


@settings(max_examples=500)
@given(DURATIONS.flatmap(lambda each: rows_of(timed(st.just(each)))))
def test_steps_of_equal_durations_may_too(rows: list[Timed]) -> None:
    assert is_possible(rows) is not do_overlap(rows)


@pytest.mark.parametrize(("latest", "wanted"), [(2, True), (1, False)])
def test_an_empty_window_has_no_solution(latest: int, wanted: bool) -> None:
    model = cp_model.CpModel()
    Start.within(model, 2, latest)
    assert (cp_model.CpSolver().solve(model) == cp_model.OPTIMAL) is wanted
