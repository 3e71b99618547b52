"""Plans as Parquet: the same plan, and the same checks, as in JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from crosspipe_ray import plan as plan_module
from crosspipe_ray import plan_table
from crosspipe_ray.errors import InputError, PlanError, ScheduleError
from crosspipe_ray.plan import Plan, plan_json, read_plan, write_plan
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import link, make_problem, problems

BUDGET = Budget(iterations=3, time_limit_s=60.0)
PROBLEM = make_problem(
    (0, 1),
    3,
    stage={"gather_us": 1, "reduce_us": 1},
    links=[link(0, 1, 2, 1), link(1, 0, 2, 1)],
)


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(PROBLEM, method="greedy", budget=BUDGET)


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_plans_of_any_problem_read_back(tmp_path_factory: Any, problem: Problem) -> None:
    made = plan(problem, method="greedy", budget=BUDGET)
    path = tmp_path_factory.mktemp("plan") / "plan.parquet"
    write_plan(made, path)
    assert plan_json(read_plan(path, problem=problem)) == plan_json(made)


def test_row_groups_do_not_show(
    tmp_path: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_table, "_ROWS_PER_GROUP", 2)
    path = tmp_path / "plan.parquet"
    write_plan(made, path)
    assert pq.ParquetFile(path).num_row_groups > 4
    assert plan_json(read_plan(path)) == plan_json(made)


def test_content_decides_how_a_file_is_read(tmp_path: Path, made: Plan) -> None:
    write_plan(made, tmp_path / "plan.parquet")
    renamed = (tmp_path / "plan.parquet").rename(tmp_path / "plan.json")
    assert plan_json(read_plan(renamed)) == plan_json(made)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_columns_say_what_happens_when(tmp_path: Path, made: Plan) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(made, path)
    table = pq.read_table(path)
    assert table.column_names == [
        "rank", "stage", "kind", "microbatch", "start_ns", "end_ns", "dst", "arrive_ns",
    ]  # fmt: skip
    rows = table.to_pylist()
    span, send = made.timeline.ranks[0][0], made.timeline.sends[0]
    assert rows[0] == {
        "rank": 0, "stage": 0, "kind": "F", "microbatch": 0, "start_ns": span.start_ns,
        "end_ns": span.end_ns, "dst": None, "arrive_ns": None,
    }  # fmt: skip
    first_send = next(row for row in rows if row["kind"].startswith("SEND"))
    assert (first_send["dst"], first_send["arrive_ns"]) == (send.dst, send.arrive_ns)


def test_folder_that_is_not_there(tmp_path: Path, made: Plan) -> None:
    with pytest.raises(InputError, match=r"no/plan\.parquet: cannot write into .*: No such file"):
        write_plan(made, tmp_path / "no" / "plan.parquet")


def test_too_many_ops_for_json(tmp_path: Path, made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_MOST_JSON_OPS", 17)
    with pytest.raises(
        PlanError, match=r"plan\.json: 18 ops are too many for JSON.* plan\.parquet"
    ):
        write_plan(made, tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
    write_plan(made, tmp_path / "plan.parquet")


Edit = Callable[[Any], Any]


def drop(column: str) -> Edit:
    return lambda table: table.drop_columns([column])


def edit(column: str, change: Callable[[list[Any]], list[Any]]) -> Edit:
    """Rewrites a column's values."""

    def apply(table: Any) -> Any:
        values = change(table[column].to_pylist())
        at = table.column_names.index(column)
        return table.set_column(at, column, pa.array(values))

    return apply


def with_first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (drop("end_ns"), PlanError, "no column 'end_ns'"),
        (edit("kind", with_first("X")), PlanError, "column 'kind': a row has none of F, I, W, B"),
        (edit("stage", with_first(None)), PlanError, "column 'stage': a row has no whole number"),
        (edit("start_ns", lambda v: [t / 2 for t in v]), PlanError, "'start_ns': a row has no"),
        (edit("stage", with_first(-1)), PlanError, "column 'stage': -1 is out of range"),
        (edit("rank", with_first(7)), PlanError, "column 'rank': 7 is out of range"),
        (edit("rank", with_first(1)), PlanError, "ops do not stand rank after rank"),
        (edit("microbatch", with_first(1)), ScheduleError, "0F1 .* run in microbatch order"),
        (edit("end_ns", with_first(5)), PlanError, "0F0 has not the times that it takes"),
        (edit("arrive_ns", lambda v: [t and t + 1 for t in v]), PlanError, "has not the times"),
        (lambda table: table.replace_schema_metadata({}), PlanError, "has no crosspipe_plan"),
        (lambda table: table.slice(1), ScheduleError, "0F1 .* run in microbatch order"),
        (
            lambda table: table.filter(pc.invert(pc.equal(table["kind"].cast("string"), "SEND_F"))),
            ScheduleError,
            "or its send is missing",
        ),
    ],
)
def test_edited_plan_is_refused(
    tmp_path: Path, made: Plan, change: Edit, error: type[InputError], message: str
) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(made, path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(error, match=rf"plan\.parquet: .*{message}"):
        read_plan(path)


def test_cut_file_is_refused(tmp_path: Path, made: Plan) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(made, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PlanError, match=r"plan\.parquet: not the Parquet of a plan: "):
        read_plan(path)


def test_a_file_without_rows_or_with_other_metadata_is_refused(tmp_path: Path, made: Plan) -> None:
    path = tmp_path / "plan.parquet"
    write_plan(made, path)
    table = pq.read_table(path)
    pq.ParquetWriter(path, table.schema).close()
    with pytest.raises(PlanError, match=r"plan\.parquet: has no ops$"):
        read_plan(path)
    pq.write_table(table.replace_schema_metadata({"crosspipe_plan": b"\xff"}), path)
    with pytest.raises(PlanError, match=r"plan\.parquet: metadata crosspipe_plan: no text in UTF"):
        read_plan(path)
