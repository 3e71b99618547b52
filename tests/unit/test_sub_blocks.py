"""Ops in parts. A word is an op, or with @ the parts of one: 0W0@1-3/4 is parts 1 and 2 of 4."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.cli import main
from crosspipe_ray.columns import Parts
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.engine import clock
from crosspipe_ray.engine.synthetic import SyntheticStage
from crosspipe_ray.errors import InputError, PlanError, ScheduleError
from crosspipe_ray.lowering import check_messages_fit, lower
from crosspipe_ray.ops import WHOLE, Part, op_code, parse_op
from crosspipe_ray.plan import Plan, plan_json, read_plan, write_plan
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.planners.sampling import makespans_ns
from crosspipe_ray.problem import Problem
from crosspipe_ray.report.svg import timeline_svg
from crosspipe_ray.report.text import timeline_text
from crosspipe_ray.report.trace import trace_events
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule, peak_memory_bytes
from crosspipe_ray.simulate import simulate
from crosspipe_ray.sub_blocks import share_of
from tests.unit.builders import link, make_problem, problems, regions_problem, sends_us

BUDGET = Budget(iterations=3, time_limit_s=60.0)


def split_schedule(*ranks: str) -> Schedule:
    words = [word for text in ranks for word in text.split()]
    codes = [op_code(*parse_op(word.partition("@")[0])) for word in words]
    parts = Parts.of(part_of(word) for word in words)
    lengths = [len(text.split()) for text in ranks]
    return Schedule.of_codes(np.array(codes), lengths, parts=parts)


def part_of(word: str) -> Part:
    text = word.partition("@")[2]
    if not text:
        return WHOLE
    cut, num_parts = text.split("/")
    first, end = cut.split("-")
    return Part(int(first), int(end), int(num_parts))


def one_stage(num_microbatches: int = 1, **fields: Any) -> Problem:
    return make_problem((0,), num_microbatches, max_sub_blocks=4, **fields)


def times_us(problem: Problem, *ranks: str) -> list[tuple[str, float, float]]:
    timeline = simulate(problem, split_schedule(*ranks))
    return [
        (
            str(span.op) if part == WHOLE else f"{span.op}@{part}",
            span.start_ns / 1e3,
            span.end_ns / 1e3,
        )
        for rank in range(len(timeline.ranks))
        for span, part in timeline.entries(rank)
    ]


@given(st.integers(0, 10**12), st.integers(1, 9))
def test_shares_add_up(total: int, num_parts: int) -> None:
    shares = [share_of(total, Part(part, part + 1, num_parts)) for part in range(num_parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert share_of(total, Part(0, num_parts, num_parts)) == total


def test_parts_last_their_share_and_others_run_in_between() -> None:
    problem = one_stage(2, stage={"backward_weight_us": 4})
    ranks = "0F0 0I0 0W0@0-1/4 0F1 0W0@1-4/4 0I1 0W1"
    assert times_us(problem, ranks) == [
        ("0F0", 0, 1), ("0I0", 1, 2), ("0W0@0-1/4", 2, 3), ("0F1", 3, 4), ("0W0@1-4/4", 4, 7),
        ("0I1", 7, 8), ("0W1", 8, 12),
    ]  # fmt: skip


def test_overhead_is_paid_by_every_part() -> None:
    problem = one_stage(rank={"op_overhead_us": 0.5}, stage={"forward_us": 2})
    assert times_us(problem, "0F0@0-1/2 0F0@1-2/2 0B0") == [
        ("0F0@0-1/2", 0, 1.5), ("0F0@1-2/2", 1.5, 3), ("0B0", 3, 5.5),
    ]  # fmt: skip


def test_message_leaves_after_the_last_part_and_the_first_waits_for_it() -> None:
    problem = make_problem(
        (0, 1), 1, max_sub_blocks=2, links=[link(0, 1, 3, 1)], stage={"forward_us": 2}
    )
    schedule = split_schedule("0F0@0-1/2 0F0@1-2/2", "1F0@0-1/2 1F0@1-2/2")
    timeline = simulate(problem, schedule)
    assert sends_us(timeline) == {"0SEND_F0": (2, 3, 6)}
    assert [span.start_ns for span in timeline.ranks[1]] == [6000, 7000]
    assert timeline.peak_message_bytes == (0, 0)
    assert makespans_ns(
        Plan(problem, schedule, timeline, "", "gap", 0, 0, 0.0), {(0, 1): np.array([3000, 5000])}
    ).tolist() == [8000, 10_000]


def test_memory_is_taken_and_given_back_in_shares() -> None:
    problem = one_stage(2, stage={"activation_bytes": 10, "freed_by_backward_input_bytes": 4})
    costs = stage_costs(problem)
    # 0F1's first half takes 5 while 0F0 holds 10; its second one when I has freed 2 and 2.
    schedule = split_schedule("0F0 0I0@0-1/2 0F1@0-1/2 0I0@1-2/2 0F1@1-2/2 0W0 0B1")
    assert peak_memory_bytes(costs, schedule) == (16,)
    assert peak_memory_bytes(costs, split_schedule("0F0 0I0 0F1 0W0 0B1")) == (16,)
    assert peak_memory_bytes(costs, split_schedule("0F0 0I0 0W0@0-1/2 0F1 0W0@1-2/2 0B1")) == (13,)


def test_over_memory_names_the_part_that_does_not_fit() -> None:
    problem = one_stage(2, rank={"memory_limit_bytes": 12}, stage={"activation_bytes": 10})
    with pytest.raises(
        ScheduleError, match=r"op 0F1 \(position 2\): holds 15 .* 3 more than the 12"
    ):
        validate(problem, split_schedule("0F0 0I0 0F1@0-1/2 0F1@1-2/2 0W0 0B1"))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ("0F0 0I0 0W0@1-2/2", r"0W0 \(position 2\): parts run in order; part 0 of 2 comes next"),
        ("0F0 0I0 0W0@0-1/3 0W0@2-3/3", "parts run in order; part 1 of 3 comes next"),
        ("0F0 0I0 0W0@0-1/3 0W0@1-2/2", "parts run in order; part 1 of 3 comes next"),
        ("0F0 0I0 0W0@0-2/4 0W0", "parts run in order; part 2 of 4 comes next"),
        ("0F0 0I0 0W0@0-2/2 0W0@0-1/2", "0W0 .* this op has run before"),
        ("0F0@0-1/2 0I0", "backward comes after forward; 0F0 is not before it"),
        ("0F0 0I0@0-1/2 0W0", "W comes after its I; 0I0 is not before it"),
        ("0F0@0-1/2 0F1", "run in microbatch order; 0F0 comes first"),
        ("0F0 0I0 0W0@0-1/2", "rank 0: op 0W0 is missing"),
        ("0F0@0-1/5", "0-1/5 is no part; max_sub_blocks is 4"),
        ("0F0@1-1/2", "1-1/2 is no part"),
        ("0F0@0-3/2", "0-3/2 is no part"),
    ],
)  # fmt: skip
def test_broken_rule_is_named(ranks: str, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        validate(one_stage(2 if "0F1" in ranks else 1), split_schedule(ranks))


def test_whole_ops_are_not_kept_as_parts() -> None:
    assert split_schedule("0F0 0B0").parts is None
    assert split_schedule("0F0@0-3/3 0B0") == split_schedule("0F0 0B0")


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(2, 5))
def test_greedy_plans_of_any_problem_hold(problem: Problem, max_sub_blocks: int) -> None:
    problem = problem.model_copy(update={"max_sub_blocks": max_sub_blocks})
    schedule = crosspipe_greedy(problem).schedule
    validate(problem, schedule)
    assert bounds_of(problem).makespan_ns <= simulate(problem, schedule).makespan_ns


@pytest.mark.parametrize("max_sub_blocks", [2, 4])
def test_greedy_gains_from_parts_without_delays(max_sub_blocks: int) -> None:
    stage = {"backward_input_us": 1.28, "backward_weight_us": 0.48}
    whole = regions_problem(8, 16, memory=8, stage=stage)
    split = regions_problem(8, 16, memory=8, stage={**stage}, max_sub_blocks=max_sub_blocks)
    makespans = [simulate(p, crosspipe_greedy(p).schedule).makespan_ns for p in (split, whole)]
    assert makespans[0] < 0.97 * makespans[1]


@pytest.fixture
def made() -> Plan:
    """A plan in which F and W are split."""
    stage = {"backward_input_us": 1.28, "backward_weight_us": 0.48}
    problem = regions_problem(4, 6, memory=4, stage=stage, latency_us=0.25, max_sub_blocks=3)
    made = plan(problem, method="crosspipe-greedy", budget=BUDGET)
    assert made.timeline.parts is not None
    assert {"F", "W"} <= {
        span.op.kind.name
        for rank in range(4)
        for span, part in made.timeline.entries(rank)
        if part != WHOLE
    }
    return made


@pytest.mark.parametrize("name", ["plan.json", "plan.parquet"])
def test_plan_reads_back(tmp_path: Path, made: Plan, name: str) -> None:
    write_plan(made, tmp_path / name)
    again = read_plan(tmp_path / name)
    assert again.schedule == made.schedule
    assert again.timeline == made.timeline
    assert plan_json(again) == plan_json(made)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ([0, 1], PlanError, r"part"),
        ([0, 1, 7], ScheduleError, "0-1/7 is no part; max_sub_blocks is 3"),
        ([1, 2, 3], ScheduleError, "parts run in order"),
        (None, ScheduleError, "parts run in order|has run before"),
    ],
)
def test_edited_part_is_refused(
    tmp_path: Path, made: Plan, part: list[int] | None, error: type[InputError], message: str
) -> None:
    data = json.loads(json.dumps(plan_json(made)))
    entry = next(each for each in data["ranks"][0] if "part" in each)
    entry["part"] = part
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(error, match=rf"plan\.json: .*({message})"):
        read_plan(tmp_path / "plan.json")


def test_auto_keeps_whole_ops_for_the_other_methods(made: Plan) -> None:
    chosen = plan(made.problem, budget=BUDGET)
    assert chosen.timeline.makespan_ns <= made.timeline.makespan_ns
    improved = plan(made.problem, method="improve", budget=BUDGET)
    assert improved.schedule.parts is None


def test_programs_say_what_parts_their_ops_are() -> None:
    problem = make_problem((0, 1), 1, max_sub_blocks=2)
    schedule = split_schedule("0F0 0I0 0W0", "1F0 1I0 1W0@0-1/2 1W0@1-2/2")
    first, second = lower(problem, simulate(problem, schedule))
    entries = zip(second.ops, second.parts, strict=True)
    assert " ".join(str(op) if part == WHOLE else f"{op}@{part}" for op, part in entries) == (
        "1RECV_F0 1F0 1I0 1SEND_B0 1W0@0-1/2 1W0@1-2/2"
    )
    assert set(first.parts) == {WHOLE}


def test_receives_precede_the_first_part_and_sends_follow_the_last(made: Plan) -> None:
    check_messages_fit(made.problem, made.timeline)
    with pytest.raises(ScheduleError, match=r"rank 0, op 0F\d: .* the engine splits W only"):
        lower(made.problem, made.timeline)


def test_torchs_csv_has_no_parts(
    tmp_path: Path,
    made: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_plan(made, tmp_path / "plan.json")
    monkeypatch.setattr(sys, "argv", ["crosspipe", "export", str(tmp_path / "plan.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "ops are split in parts" in capsys.readouterr().err


def test_reports_name_the_parts(made: Plan) -> None:
    assert made.timeline.parts is not None
    span, part = next(entry for entry in made.timeline.entries(0) if entry[1] != WHOLE)
    panels = [("made", made.timeline)]
    assert f"{span.op} part {part}: " in timeline_svg(panels)
    events = trace_events(panels)["traceEvents"]
    assert any(
        event["name"] == str(span.op) and event["args"].get("part") == list(part)
        for event in events
        if event["ph"] == "X"
    )
    assert "F0" in timeline_text(made.timeline).plain


def test_synthetic_stage_sleeps_through_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = one_stage(rank={"op_overhead_us": 0.5}, stage={"backward_weight_us": 6})
    ends_ns: list[int] = []
    monkeypatch.setattr(clock, "now_ns", lambda: 0)
    monkeypatch.setattr(clock, "sleep_until", ends_ns.append)
    stage = SyntheticStage(stage_costs(problem)[0])
    for part in (WHOLE, Part(0, 1, 4), Part(1, 4, 4)):
        stage.backward_weight(0, part)
    assert ends_ns == [6500, 2000, 5000]
