from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from crosspipe_ray.errors import InputError, PlanError, ScheduleError
from crosspipe_ray.plan import Plan, plan_json, read_plan, write_plan
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import UNIT_STAGE, link, make_problem, problems

BUDGET = Budget(iterations=3, time_limit_s=60.0)
PROBLEM = make_problem(
    (0, 1),
    3,
    rank={"memory_limit_bytes": 2},
    stage={"gather_us": 1, "reduce_us": 1},
    links=[link(0, 1, 2, 1), link(1, 0, 2, 1)],
)


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(PROBLEM, method="greedy", budget=BUDGET)


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


def test_plan_reads_back(tmp_path: Path, made: Plan) -> None:
    path = tmp_path / "plan.json"
    write_plan(made, path)
    assert plan_json(read_plan(path, problem=PROBLEM)) == plan_json(made)


@settings(max_examples=60)
@given(problem=problems())
def test_plans_of_any_problem_read_back(tmp_path_factory: Any, problem: Problem) -> None:
    made = plan(problem, method="greedy", budget=BUDGET)
    read = read_plan(write(tmp_path_factory.mktemp("plan"), plan_json(made)))
    assert read.timeline == made.timeline
    assert read.problem == problem


def test_nothing_else_is_left_in_the_folder(tmp_path: Path, made: Plan) -> None:
    write_plan(made, tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_folder_that_is_not_there(tmp_path: Path, made: Plan) -> None:
    with pytest.raises(InputError, match=r"no/plan\.json: cannot write into .*: No such file"):
        write_plan(made, tmp_path / "no" / "plan.json")


def test_fields_of_the_format(made: Plan) -> None:
    data = plan_json(made)
    assert list(data) == [
        "version", "method", "status", "seed", "makespan_us", "lower_bound_us", "bubble_ratio",
        "wall_s", "problem", "problem_sha256", "ranks", "sends", "collectives",
        "peak_message_bytes",
    ]  # fmt: skip


Edit = Callable[[dict[str, Any]], object]


def entry(data: dict[str, Any], op: str) -> dict[str, Any]:
    groups = [*data["ranks"], data["sends"], data["collectives"]]
    found: dict[str, Any] = next(each for group in groups for each in group if each["op"] == op)
    return found


def drop(op: str) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for entries in (*data["ranks"], data["sends"]):
            entries[:] = [each for each in entries if each["op"] != op]

    return edit


def rename(op: str, other: str) -> Edit:
    return lambda data: entry(data, op).update(op=other)


def shift(op: str, field: str) -> Edit:
    return lambda data: entry(data, op).update({field: entry(data, op)[field] + 0.5})


def change(**fields: Any) -> Edit:
    return lambda data: data.update(fields)


def hold_too_much(data: dict[str, Any]) -> None:
    data["ranks"][0].sort(key=lambda each: "FIW".index(each["op"][1]))


def wait_in_a_cycle(data: dict[str, Any]) -> None:
    data["sends"].reverse()


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (drop("1W2"), ScheduleError, "rank 1: op 1W2 is missing"),
        (rename("0F1", "0F0"), ScheduleError, "op 0F0 .* has run before"),
        (rename("0F1", "1F1"), ScheduleError, "stage 1 is not on this rank"),
        (hold_too_much, ScheduleError, r"rank 0, op 0F2 \(position 2\): holds 3 .* 1 more than"),
        (wait_in_a_cycle, ScheduleError, "deadlock"),
        (drop("0SEND_F1"), ScheduleError, "deadlock, .* or its send is missing"),
        (rename("0SEND_F0", "7SEND_F0"), ScheduleError, "send 7SEND_F0: it occupies no link"),
        (rename("0F1", "zero"), ScheduleError, "'zero' is no op"),
        (shift("0F1", "start_us"), PlanError, "0F1 has not the times that it takes"),
        (shift("0SEND_F1", "arrive_us"), PlanError, "0SEND_F1 has not the times"),
        (shift("1REDUCE_GRAD", "end_us"), PlanError, "1REDUCE_GRAD has not the times"),
        (change(makespan_us=1), PlanError, "makespan_us is 1.000, but its ops take"),
        (change(problem_sha256="0" * 64), PlanError, "problem_sha256 is not the digest"),
        (change(version=2), PlanError, r"version: input should be 1 \(got 2\)"),
        (change(metod="x"), PlanError, "metod: unknown field; did you mean 'method'"),
        (change(status="good"), PlanError, "status: input should be 'proven', 'gap' or"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_edited_plan_is_refused(
    tmp_path: Path, made: Plan, edit: Edit, error: type[InputError], message: str
) -> None:
    data = json.loads(json.dumps(plan_json(made)))
    edit(data)
    with pytest.raises(error, match=rf"plan\.json: .*{message}"):
        read_plan(write(tmp_path, data))


def test_edited_problem_is_refused(tmp_path: Path, made: Plan) -> None:
    data = json.loads(json.dumps(plan_json(made)))
    data["problem"]["num_microbatches"] = 2
    with pytest.raises(PlanError, match="problem_sha256 is not the digest of the problem"):
        read_plan(write(tmp_path, data))


def test_plan_for_another_problem(tmp_path: Path, made: Plan) -> None:
    with pytest.raises(PlanError, match="the plan is for another problem"):
        read_plan(write(tmp_path, plan_json(made)), problem=make_problem((0, 1), 3))


def test_plan_of_layers_that_have_no_place(tmp_path: Path, made: Plan) -> None:
    data = json.loads(json.dumps(plan_json(made)))
    data["problem"] = {"num_microbatches": 3, "ranks": [{}], "layers": [UNIT_STAGE]}
    data["problem_sha256"] = Problem.model_validate(data["problem"]).sha256
    with pytest.raises(PlanError, match=r"problem\.stages: missing"):
        read_plan(write(tmp_path, data))


def test_gap_of_a_plan_is_a_share_of_its_bound(made: Plan) -> None:
    assert made.gap == made.timeline.makespan_ns / made.lower_bound_ns - 1
