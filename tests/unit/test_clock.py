"""What is done for all ops at once, or by machine code, gives what is done one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray import clock, rules
from crosspipe_ray.columns import PerRank
from crosspipe_ray.compiled import SWITCH
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.ops import COMPUTE_KINDS, Kind, Op
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline
from tests.unit.builders import make_problem, make_schedule, problems


def timelines(problem: Problem) -> list[Timeline]:
    order = greedy_order(problem, iterations=2, time_limit_s=60.0)
    return [
        simulate(problem, order.schedule, send_order=order.sends),
        simulate(problem, crosspipe_greedy(problem).schedule),
    ]


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_machine_code_gives_the_same_times(problem: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "never")
        as_python = timelines(problem)
        patch.setenv(SWITCH, "always")
        assert timelines(problem) == as_python


def test_machine_code_finds_the_same_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "always")
    with pytest.raises(ScheduleError, match=r"rank 0, op 2F0 \(position 0\): deadlock, .* of 1F0"):
        simulate(make_problem((0, 1, 0, 1), 1), make_schedule("2F0 0F0", "1F0 3F0"))


@pytest.mark.parametrize(("wish", "is_python"), [("never", True), ("always", False)])
def test_the_switch_decides_for_the_clock(
    wish: str, is_python: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = clock.run, list[object]()

    def noted(*columns: Any) -> None:
        calls.append(columns)
        run(*columns)

    monkeypatch.setenv(SWITCH, wish)
    monkeypatch.setattr(clock, "run", noted)
    simulate(make_problem((0,), 1), make_schedule("0F0 0I0 0W0"))
    assert bool(calls) is is_python


@st.composite
def edited_schedules(draw: st.DrawFn) -> tuple[Problem, Schedule]:
    """A valid schedule in which an op has moved, gone, come or changed, or none has."""
    problem = draw(problems())
    ranks = [list(held) for held in crosspipe_greedy(problem).schedule.ranks]
    lane = draw(st.sampled_from([held for held in ranks if held]))
    at, to = draw(st.integers(0, len(lane) - 1)), draw(st.integers(0, len(lane) - 1))
    edit = draw(st.sampled_from(("keep", "move", "drop", "repeat", "change")))
    if edit == "move":
        lane.insert(to, lane.pop(at))
    elif edit == "drop":
        del lane[at]
    elif edit == "repeat":
        lane.insert(to, lane[at])
    elif edit == "change":
        stage = draw(st.integers(0, len(problem.stages)))
        microbatch = draw(st.integers(0, problem.num_microbatches))
        lane[at] = Op(stage, draw(st.sampled_from((*COMPUTE_KINDS, Kind.SEND_F))), microbatch)
    return problem, Schedule.of(ranks)


def verdict(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ScheduleError as error:
        return str(error)
    return None


def check_one_by_one(problem: Problem, schedule: Schedule) -> None:
    for rank in range(len(schedule.ranks)):
        rules._RankRules(problem, schedule, rank).check()


@settings(max_examples=200, deadline=None)
@given(edited_schedules())
def test_rules_are_checked_as_one_by_one(edited: tuple[Problem, Schedule]) -> None:
    at_once = verdict(lambda: validate(*edited))
    if at_once is not None and "activation bytes" in at_once:  # memory comes after the rules
        at_once = None
    assert at_once == verdict(lambda: check_one_by_one(*edited))


def test_blocks_of_ranks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem((0, 1, 1, 0), 5, rank={"memory_limit_bytes": 7})
    schedule = crosspipe_greedy(problem).schedule
    whole = simulate(problem, schedule)
    in_blocks = partialmethod(PerRank.blocks, num_rows=1)
    monkeypatch.setattr(PerRank, "blocks", in_blocks)
    validate(problem, schedule)
    assert simulate(problem, schedule) == whole
