from pathlib import Path

import pytest

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.errors import ScheduleError
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule, peak_memory_bytes
from crosspipe_ray.schedule_csv import read_csv, to_csv
from tests.unit.builders import make_problem, make_schedule

PROBLEM = make_problem((0, 1), 2)
GOOD = ("0F0 0F1 0I0 0W0 0I1 0W1", "1F0 1B0 1F1 1I1 1W1")


def complaint(*ranks: str, problem: Problem = PROBLEM) -> str:
    with pytest.raises(ScheduleError) as caught:
        validate(problem, make_schedule(*ranks))
    return str(caught.value)


def test_valid_schedule_passes() -> None:
    validate(PROBLEM, make_schedule(*GOOD))


def test_number_of_ranks() -> None:
    assert complaint(GOOD[0]) == "the schedule has 1 ranks, the problem 2"


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("0F0 0F1 0I0 0W0 0I1", "rank 0: op 0W1 is missing"),
        ("0F0 0F1 0I0 0W0", "rank 0: op 0I1 is missing"),
        ("0F0 0B0", "rank 0: op 0F1 is missing"),
        ("", "rank 0: op 0F0 is missing"),
        ("0F0 0F0 0B0", "op 0F0 (position 1): this op, or the other form of its backward, has run"),
        ("0F0 0I0 0I0", "op 0I0 (position 2): this op, or the other form of its backward, has run"),
        ("0F0 0B0 0I0", "op 0I0 (position 2): this op, or the other form of its backward, has run"),
        ("0F0 0I0 0W0 0B0", "op 0B0 (position 3): this op, or the other form of its backward"),
        ("0F0 0I0 0W0 0W0", "op 0W0 (position 3): this op has run before"),
        ("0F1", "op 0F1 (position 0): ops of one stage and kind run in microbatch order; 0F0"),
        ("0F0 0F1 0I1", "op 0I1 (position 2): ops of one stage and kind run in microbatch order"),
        ("0F0 0F1 0I0 0I1 0W1", "op 0W1 (position 4): ops of one stage and kind run in microbatch"),
        ("0F0 1F0", "op 1F0 (position 1): stage 1 is not on this rank, which has stage 0"),
        ("0F0 0W0", "op 0W0 (position 1): W comes after its I; 0I0 is not before it"),
        ("0F0 0B0 0W0", "op 0W0 (position 2): W comes after its I; 0I0 is not before it"),
        ("0I0", "op 0I0 (position 0): backward comes after forward; 0F0 is not before it"),
        ("0B0", "op 0B0 (position 0): backward comes after forward; 0F0 is not before it"),
        ("0F2", "op 0F2 (position 0): there are 2 microbatches, counted from 0"),
        ("0SEND_F0", "op 0SEND_F0 (position 0): a schedule holds compute ops only"),
        ("0UNSHARD", "op 0UNSHARD (position 0): a schedule holds compute ops only"),
    ],
)
def test_broken_rule_is_named(ops: str, message: str) -> None:
    found = complaint(ops, GOOD[1])
    assert found.startswith("rank 0")
    assert message in found


def test_fused_stage_runs_b() -> None:
    message = complaint("0F0 0I0", "", problem=make_problem((0, 1), 2, fused_backward=True))
    assert message.startswith("rank 0, op 0I0 (position 1): stage 0 has a fused backward")


def test_fused_stage_misses_b() -> None:
    message = complaint("0F0 0F1 0B0", "", problem=make_problem((0, 1), 2, fused_backward=True))
    assert message == "rank 0: op 0B1 is missing"


def test_weight_backwards_of_a_stage_that_mixes_both_forms() -> None:
    validate(make_problem((0,), 3), make_schedule("0F0 0F1 0F2 0I0 0B1 0I2 0W0 0W2"))


def test_over_memory_names_rank_op_and_bytes() -> None:
    problem = make_problem(
        (0, 1),
        2,
        rank={"memory_limit_bytes": 25},
        stage={"activation_bytes": 10, "weight_bytes": 6},
    )
    message = complaint(*GOOD, problem=problem)
    assert message == (
        "rank 0, op 0F1 (position 1): holds 20 activation bytes, "
        "1 more than the 19 that memory_limit_bytes leaves"
    )


def test_memory_is_given_back_in_two_parts() -> None:
    stage = {"activation_bytes": 10, "freed_by_backward_input_bytes": 4}
    costs = stage_costs(make_problem((0,), 3, stage=stage))
    schedule = make_schedule("0F0 0I0 0F1 0W0 0I1 0F2 0I2 0W1 0W2")
    assert peak_memory_bytes(costs, schedule) == (6 + 10,)


def test_grid_is_attached_and_marks_the_op() -> None:
    with pytest.raises(ScheduleError) as caught:
        validate(PROBLEM, make_schedule("0F0 0F0", GOOD[1]))
    assert caught.value.grid == "rank 0: 0F0 [0F0]\nrank 1: 1F0 1B0 1F1 1I1 1W1"


def test_grid_is_cut_around_a_late_op() -> None:
    grid = make_schedule(GOOD[0], GOOD[1]).grid(around=(0, 4), width=2)
    assert grid == "rank 0: .. 0W0 [0I1] ..\nrank 1: .. 1I1 1W1"


def test_csv_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text(to_csv(make_schedule(*GOOD)))
    assert read_csv(path) == make_schedule(*GOOD)


def test_empty_cells_of_torchs_grids_are_idle(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text("0F0,,0B0\n,1F0,1B0,\n")
    assert read_csv(path) == make_schedule("0F0 0B0", "1F0 1B0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0\n1F0,x\n", "rank 1, cell 1: 'x' is no op"),
        ("0F0,0SEND_F0\n", "rank 0, cell 1: '0SEND_F0' is no compute op"),
    ],
)
def test_wrong_cell_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text(text)
    with pytest.raises(ScheduleError) as caught:
        read_csv(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_missing_csv(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"no\.csv: No such file"):
        read_csv(tmp_path / "no.csv")


def test_binary_file_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScheduleError, match="not CSV"):
        read_csv(path)


def test_schedule_is_made_of_any_iterables() -> None:
    assert Schedule.of(iter([iter([])])).ranks == ((),)
