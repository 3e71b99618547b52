"""Where the planner chooses stages and ranks, by the checks that know the formats alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.problem import Problem, problem_json
from tests.unit.builders import UNIT_STAGE, layered_problems, link
from tests.unit.independent_placement import placement_violations
from tests.unit.plan_checks import as_file, check_attempt

BUDGET = Budget(iterations=2, time_limit_s=60.0)
LAYERS = Problem.model_validate(
    {
        "num_microbatches": 2,
        "ranks": [{"cluster": "us"}, {"cluster": "eu"}],
        "layers": [{**UNIT_STAGE, "input_gradient_bytes": number} for number in range(4)],
        "links": [link(0, 1, 1, 1)],
        "num_stages_per_rank": 2,
    }
)


@settings(max_examples=60)
@given(layered_problems())
def test_plans_on_every_placement_hold(problem: Problem) -> None:
    with suppress(InfeasibleError):
        plan(problem, budget=BUDGET, on_attempt=partial(check_attempt, asked=problem))


def forget_link(placed: dict[str, Any]) -> None:
    placed["links"].clear()


def leave_rank_out(placed: dict[str, Any]) -> None:
    for stage in placed["stages"]:
        stage["rank"] = 0


def skip_layer(placed: dict[str, Any]) -> None:
    placed["stages"][1]["layers"] = [2, 2]


def cost_less(placed: dict[str, Any]) -> None:
    placed["stages"][1]["backward_weight_us"] -= 1


def send_less(placed: dict[str, Any]) -> None:
    placed["stages"][1]["output_bytes"] -= 1


def send_less_back(placed: dict[str, Any]) -> None:
    placed["stages"][2]["input_gradient_bytes"] -= 1


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        (forget_link, "links is not what was asked for"),
        (leave_rank_out, "rank 1 holds 0 stages"),
        (skip_layer, "layers are cut into"),
        (cost_less, "stage 1: backward_weight_us is not"),
        (send_less, "stage 1: output_bytes are not"),
        (send_less_back, "stage 2: input_gradient_bytes are not"),
    ],
)
def test_corrupted_placement_is_rejected(
    corrupt: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    asked = problem_json(LAYERS)
    placed = as_file(plan(LAYERS, method="greedy", budget=BUDGET))["problem"]
    corrupt(placed)
    assert any(complaint in found for found in placement_violations(placed, asked))
