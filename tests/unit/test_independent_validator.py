from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.planners.pieces import plan_in_pieces
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.planners.robust import robust_plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import link, make_problem, problems, with_message_memory
from tests.unit.independent_validator import violations
from tests.unit.plan_checks import as_file, check_attempt, check_plan

BUDGET = Budget(iterations=6, time_limit_s=60.0)


@settings(max_examples=150)
@given(problems())
def test_plans_of_all_methods_hold(problem: Problem) -> None:
    plan(problem, budget=BUDGET, on_attempt=check_attempt)


@settings(max_examples=80)
@given(problems(), st.integers(2, 4))
def test_plans_with_parts_hold(problem: Problem, max_sub_blocks: int) -> None:
    problem = problem.model_copy(update={"max_sub_blocks": max_sub_blocks})
    for method in ("crosspipe-greedy", "auto"):
        check_plan(plan(problem, method=method, budget=BUDGET))


@settings(max_examples=60)
@given(problems(), st.sampled_from((0, 500, 1000, 3000)))
def test_plans_within_message_memory_hold(problem: Problem, spare_bytes: int) -> None:
    problem = with_message_memory(problem, spare_bytes=spare_bytes)
    plan(problem, budget=BUDGET, on_attempt=check_attempt)


@settings(max_examples=40)
@given(problems().filter(lambda problem: bool(problem.links)), st.sampled_from((0.5, 0.95)))
def test_robust_plans_hold(problem: Problem, quantile: float) -> None:
    links = [each.model_copy(update={"latency_samples_us": (1, 2, 8)}) for each in problem.links]
    problem = problem.with_links(links)
    made = robust_plan(problem, quantile=quantile, budget=BUDGET, on_attempt=check_attempt)
    assert made.problem == problem


@settings(max_examples=30)
@given(problems(most_microbatches=2), st.integers(2, 4))
def test_plans_in_pieces_hold(problem: Problem, num_pieces: int) -> None:
    _, made = plan_in_pieces(
        problem, [num_pieces], make=plan, budget=BUDGET, on_attempt=check_attempt
    )
    assert made.problem.num_microbatches == num_pieces * problem.num_microbatches


@pytest.fixture
def plan_data() -> dict[str, Any]:
    """A plan in which every kind of entry occurs."""
    problem = make_problem(
        (0, 1, 1, 0),
        3,
        rank={"memory_limit_bytes": 5},
        stage={"gather_us": 1, "reduce_us": 1},
        links=[link(0, 1, 1, 1), link(1, 0, 1, 1)],
    )
    data = as_file(plan(problem, budget=BUDGET))
    assert not violations(data)
    return data


def drop_weight(data: dict[str, Any]) -> None:
    data["ranks"][0].pop()


def repeat_op(data: dict[str, Any]) -> None:
    data["ranks"][0].append(data["ranks"][0][-1])


def split_op(data: dict[str, Any]) -> None:
    """Into two halves, as is not allowed here."""
    entry = data["ranks"][0].pop()
    middle = (entry["start_us"] + entry["end_us"]) / 2
    data["ranks"][0] += [
        {**entry, "end_us": middle, "part": [0, 1, 2]},
        {**entry, "start_us": middle, "part": [1, 2, 2]},
    ]


def cut_parts_unequal(data: dict[str, Any]) -> None:
    split_op(data)
    data["ranks"][0][-1]["part"] = [1, 2, 3]


def lose_part(data: dict[str, Any]) -> None:
    split_op(data)
    data["ranks"][0].pop()


def swap_ranks(data: dict[str, Any]) -> None:
    data["ranks"].reverse()


def start_early(data: dict[str, Any]) -> None:
    entry = next(entry for entry in data["ranks"][1] if entry["op"] == "1F0")
    entry["start_us"], entry["end_us"] = entry["start_us"] - 1, entry["end_us"] - 1


def last_shorter(data: dict[str, Any]) -> None:
    data["ranks"][1][-1]["end_us"] -= 0.5


def swap_microbatches(data: dict[str, Any]) -> None:
    first, second = (e for e in data["ranks"][0] if e["op"] in ("0F0", "0F1"))
    first["op"], second["op"] = second["op"], first["op"]


def lose_message(data: dict[str, Any]) -> None:
    data["sends"].pop()


def overtake_on_channel(data: dict[str, Any]) -> None:
    data["sends"][1] |= {key: data["sends"][0][key] for key in ("start_us", "end_us", "arrive_us")}


def arrive_early(data: dict[str, Any]) -> None:
    data["sends"][0]["arrive_us"] -= 1


def lose_reduction(data: dict[str, Any]) -> None:
    data["collectives"].pop()


def take_memory(data: dict[str, Any]) -> None:
    data["problem"]["ranks"][0]["memory_limit_bytes"] = 1


def take_message_memory(data: dict[str, Any]) -> None:
    data["problem"]["ranks"][1]["message_memory_limit_bytes"] = 999


def hold_channel_longer(data: dict[str, Any]) -> None:
    data["sends"][-1]["end_us"] += 0.5
    data["sends"][-1]["arrive_us"] += 0.5


def claim_less(data: dict[str, Any]) -> None:
    data["makespan_us"] -= 1


def claim_fewer_messages(data: dict[str, Any]) -> None:
    data["peak_message_bytes"][1] -= 1


def claim_less_idle_time(data: dict[str, Any]) -> None:
    data["bubble_ratio"] -= 0.01


def claim_impossible_bound(data: dict[str, Any]) -> None:
    data["lower_bound_us"] = data["makespan_us"] + 0.001


def claim_proof(data: dict[str, Any]) -> None:
    data |= {"status": "proven", "lower_bound_us": data["makespan_us"] - 0.001}


CORRUPTIONS: tuple[tuple[Callable[[dict[str, Any]], None], str], ...] = (
    (drop_weight, "is missing"),
    (repeat_op, "an op stands twice"),
    (split_op, "2 parts are too many"),
    (cut_parts_unequal, "parts of nothing, or of different cuts"),
    (lose_part, "or a part is missing"),
    (swap_ranks, "is on rank"),
    (start_early, "starts before it can"),
    (last_shorter, "ns"),
    (swap_microbatches, "is out of order"),
    (lose_message, "is missing"),
    (overtake_on_channel, "messages overlap"),
    (arrive_early, "a latency after"),
    (lose_reduction, "is missing or not needed"),
    (take_memory, "bytes are more than 1"),
    (take_message_memory, "bytes of messages wait"),
    (hold_channel_longer, "occupies its channel for 1500 ns"),
    (claim_less, "makespan_us is not"),
    (claim_fewer_messages, "peak_message_bytes is not"),
    (claim_less_idle_time, "bubble_ratio is not"),
    (claim_impossible_bound, "shorter than its lower bound"),
    (claim_proof, "proven, but longer than its lower bound"),
)


@pytest.mark.parametrize(
    ("corrupt", "complaint"), CORRUPTIONS, ids=[corrupt.__name__ for corrupt, _ in CORRUPTIONS]
)
def test_corrupted_plan_is_rejected(
    plan_data: dict[str, Any], corrupt: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    corrupt(plan_data)
    assert any(complaint in found for found in violations(plan_data))
