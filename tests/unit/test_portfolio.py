from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.errors import InfeasibleError, ProblemError
from crosspipe_ray.planners.candidates import Candidate
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.places import Place
from crosspipe_ray.planners.portfolio import Attempt, Budget, Method, plan
from crosspipe_ray.problem import Problem
from tests.unit.builders import (
    UNIT_STAGE,
    link,
    make_problem,
    problem_data,
    problems,
    regions_problem,
    with_message_memory,
)

BUDGET = Budget(iterations=6, time_limit_s=60.0)


def layered(num_layers: int, num_ranks: int, **fields: object) -> Problem:
    data = {
        "num_microbatches": 4,
        "ranks": [{} for _ in range(num_ranks)],
        "layers": [UNIT_STAGE] * num_layers,
        **fields,
    }
    return Problem.model_validate(data)


@settings(max_examples=60)
@given(problems())
def test_auto_is_the_best_of_its_attempts(problem: Problem) -> None:
    attempts: list[Attempt] = []
    best = plan(problem, budget=BUDGET, on_attempt=attempts.append)
    plans = [attempt.plan for attempt in attempts if attempt.plan]
    assert best.timeline.makespan_ns == min(made.timeline.makespan_ns for made in plans)


@pytest.mark.parametrize(
    ("placement", "methods"),
    [
        ((0, 1), {"gpipe", "1f1b", "zb-h1", "zb-h2"}),
        ((0, 1, 1, 0), {"zb-v", "dualpipe-v"}),
        ((0, 1, 0, 1), {"interleaved"}),
        ((0, 0, 1), set()),
    ],
)
def test_auto_tries_what_fits_the_placement(placement: tuple[int, ...], methods: set[str]) -> None:
    attempts: list[Attempt] = []
    plan(make_problem(placement, 4), budget=BUDGET, on_attempt=attempts.append)
    tried = {attempt.method for attempt in attempts}
    assert tried - {"greedy", "improve", "optimal"} == methods | {"crosspipe-greedy"}


def test_searches_are_for_what_formulas_leave_open() -> None:
    attempts: list[Attempt] = []
    plan(regions_problem(4, 8), budget=BUDGET, on_attempt=attempts.append)  # zb-h1 is optimal
    assert not {"greedy", "improve", "optimal"} & {attempt.method for attempt in attempts}


def tight_wave(*links: dict[str, Any]) -> Problem:
    """Its optimum is above its bound, which only the solver shows."""
    return make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 3}, links=list(links))


@pytest.mark.parametrize(
    ("problem", "methods"),
    [
        (tight_wave(), ["crosspipe-greedy", "greedy", "improve", "optimal"]),
        (
            tight_wave(link(0, 1, 0, 4), link(1, 0, 0, 4)),
            ["crosspipe-greedy", "greedy", "optimal"],
        ),
        (  # more than 10,000 ops
            regions_problem(8, 420, memory=8, latency_us=2, occupancy_us=0.25),
            ["1f1b", "zb-h1", "greedy", "improve", "crosspipe-greedy"],
        ),
    ],
    ids=["bound by ranks", "bound by channels", "large"],
)
def test_auto_goes_on_while_there_is_a_gap(problem: Problem, methods: list[str]) -> None:
    attempts: list[Attempt] = []
    budget = Budget(iterations=2, time_limit_s=60.0)
    plan(problem, budget=budget, on_attempt=attempts.append)
    assert [attempt.method for attempt in attempts if attempt.plan] == methods


def test_what_limits_a_placement_is_known_before_any_method_was_tried() -> None:
    problem = tight_wave(link(0, 1, 0, 4), link(1, 0, 0, 4))
    assert Place(problem, Candidate("as given")).is_bound_by_channels


def test_attempt_that_fails_says_why() -> None:
    attempts: list[Attempt] = []
    plan(make_problem((0, 1, 0, 1), 3), budget=BUDGET, on_attempt=attempts.append)
    reasons = {attempt.method: str(attempt.error) for attempt in attempts if not attempt.plan}
    assert set(reasons) == {"interleaved"}
    assert "multiple of the 2 ranks" in reasons["interleaved"]


def test_unknown_method_lists_what_there_is() -> None:
    with pytest.raises(
        ProblemError, match=r"method '2f2b': no such method; .* greedy, improve, optimal, auto"
    ):
        plan(make_problem((0, 1), 2), method="2f2b")


def test_fixed_method_on_another_placement() -> None:
    with pytest.raises(ProblemError, match="1f1b needs the placement 'one_per_rank'"):
        plan(make_problem((0, 1, 1, 0), 2), method="1f1b", budget=BUDGET)


@pytest.mark.parametrize("method", ["greedy", "auto", "1f1b"])
def test_memory_below_one_microbatch_names_rank_and_bytes(method: str) -> None:
    problem = make_problem((0, 1), 2, rank={"memory_limit_bytes": 7}, stage={"activation_bytes": 9})
    with pytest.raises(InfeasibleError, match=r"rank 0 \(default\): .* 2 bytes too few"):
        plan(problem, method=method, budget=BUDGET)


@pytest.mark.parametrize(
    ("method", "rank", "needed"), [("gpipe", 2, 4 * 4 + 5), ("1f1b", 1, 2 * 3 + 5)]
)
def test_fixed_method_over_memory_says_who_lacks_the_most_and_what_would_do(
    method: str, rank: int, needed: int
) -> None:
    def limited(limit: int) -> Problem:
        limits = {"memory_limit_bytes": limit}
        data = problem_data(range(3), 4, rank=limits, stage={"weight_bytes": 5})
        for stage, activation_bytes in zip(data["stages"], (1, 3, 4), strict=True):
            stage["activation_bytes"] = activation_bytes
        return Problem.model_validate(data)

    for limit in (9, needed - 1):
        message = f"{method} does not fit: rank {rank} .*_limit_bytes {limit} is {needed - limit} "
        with pytest.raises(InfeasibleError, match=rf"{message}.* its order needs {needed}"):
            plan(limited(limit), method=method, budget=BUDGET)
    assert plan(limited(needed), method=method, budget=BUDGET).method == method


def test_auto_finds_what_fits_into_memory() -> None:
    problem = make_problem((0, 1), 4, rank={"memory_limit_bytes": 1})
    assert plan(problem, budget=BUDGET).timeline.peak_memory_bytes == (1, 1)


def test_received_inputs_over_their_memory_name_rank_and_bytes() -> None:
    data = make_problem((0, 1), 4, rank={"message_memory_limit_bytes": 1000}).model_dump()
    data["stages"][1]["forward_us"] = 5
    problem = Problem.model_validate(data)
    with pytest.raises(InfeasibleError, match=r"rank 1 \(default\) lets 3000 bytes .* 2000 more"):
        plan(problem, method="gpipe", budget=BUDGET)


@settings(max_examples=60)
@given(problems(), st.sampled_from(["auto", "greedy", "improve", "optimal"]))
def test_room_for_one_message_is_enough(problem: Problem, method: str) -> None:
    made = plan(with_message_memory(problem, spare_bytes=0), method=method, budget=BUDGET)
    peaks, ranks = made.timeline.peak_message_bytes, made.problem.ranks
    limits = [rank.message_memory_limit_bytes or 0 for rank in ranks]
    assert all(peak <= limit for peak, limit in zip(peaks, limits, strict=True))


def test_room_for_less_than_one_message_names_rank_and_bytes() -> None:
    problem = with_message_memory(make_problem((0, 1), 4), spare_bytes=-1)
    with pytest.raises(InfeasibleError, match=r"999 is 1 bytes too few; its .* alone needs 1000"):
        plan(problem, budget=BUDGET)


def test_plan_whose_receives_cannot_be_posted_is_refused() -> None:
    # No more than one input ever waits, but the lane's order asks for two receives at once.
    problem = make_problem((0, 1, 1, 0), 3, rank={"message_memory_limit_bytes": 1000})
    with pytest.raises(InfeasibleError, match=r"rank 1 .* 1000 bytes too few to post 2RECV_B0"):
        plan(problem, method="zb-v", budget=BUDGET)


def test_plan_that_meets_the_bound_is_proven() -> None:
    made = plan(regions_problem(4, 8), method="zb-h1", budget=BUDGET)
    assert made.status == "proven"
    assert made.gap == 0


def test_plan_above_the_bound_has_a_gap() -> None:
    made = plan(regions_problem(4, 8), method="gpipe", budget=BUDGET)
    assert made.status == "gap"
    assert made.gap == pytest.approx(33 / 27 - 1)


def test_plan_by_a_formula_is_out_of_time_where_the_searches_were() -> None:
    links = [link(0, 1, 4, 0), link(1, 0, 4, 0)]
    problem = make_problem((0, 1, 1, 0), 8, rank={"memory_limit_bytes": 4}, links=links)
    made = plan(problem, budget=Budget(time_limit_s=0.0))
    assert (made.method, made.status) == ("zb-v", "time_limit")


@pytest.mark.parametrize(
    ("method", "in_time"), [("greedy", "gap"), ("improve", "gap"), ("optimal", "proven")]
)
def test_search_that_the_clock_ends_says_so(method: str, in_time: str) -> None:
    budgets = (Budget(iterations=2, time_limit_s=time_limit_s) for time_limit_s in (0.0, 60.0))
    statuses = [plan(tight_wave(), method=method, budget=budget).status for budget in budgets]
    assert statuses == ["time_limit", in_time]


def test_share_that_a_search_has_used_up_is_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = {"memory_limit_bytes": 3, "op_overhead_us": 0.5}  # what is refused leaves out B's
    moments, attempts = itertools.count(), list[Attempt]()
    monkeypatch.setattr(time, "monotonic", lambda: next(moments) / 1000)
    budget = Budget(time_limit_s=1.0)
    made = plan(make_problem((0, 1, 1, 0), 4, rank=rank), budget=budget, on_attempt=attempts.append)
    searches = {attempt.method for attempt in attempts} & {"greedy", "improve", "optimal"}
    assert (len(searches), made.status) == (3, "gap")
    assert made.wall_s < budget.time_limit_s


@pytest.mark.parametrize("method", ["greedy", "optimal"])
def test_progress_of_a_search_is_told(method: str) -> None:
    seen: list[tuple[int, int]] = []
    budget = Budget(
        iterations=6,
        time_limit_s=60.0,
        on_progress=lambda makespan_ns, bound_ns: seen.append((makespan_ns, bound_ns)),
    )
    made = plan(regions_problem(4, 8), method=method, budget=budget)
    assert seen[-1] == (made.timeline.makespan_ns, made.lower_bound_ns)


def test_attempts_alone_make_the_same_plan_whatever_the_clock_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = Budget.asked(None, 6, 0)
    made = plan(layered(8, 2), budget=budget)
    hours = itertools.count(step=3600)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(hours)))
    again = plan(layered(8, 2), budget=budget)
    assert again.schedule == made.schedule
    assert again.problem == made.problem


@pytest.mark.parametrize(
    ("time_limit_s", "iterations", "wanted"),
    [
        (None, None, (5.0, math.inf)),
        (2.0, None, (2.0, math.inf)),
        (None, 7, (math.inf, 7)),
        (2.0, 7, (2.0, 7)),
    ],
)
def test_time_limit_and_attempts_as_asked(
    time_limit_s: float | None, iterations: int | None, wanted: tuple[float, float]
) -> None:
    budget = Budget.asked(time_limit_s, iterations, 0)
    assert (budget.time_limit_s, budget.iterations) == wanted


def test_layers_are_placed_for_a_fixed_method() -> None:
    made = plan(layered(8, 2), method="zb-v", budget=BUDGET)
    assert made.problem.rank_of_stage == (0, 1, 1, 0)
    assert [stage.layers for stage in made.problem.stages] == [(0, 2), (2, 4), (4, 6), (6, 8)]


def test_every_pattern_is_tried_on_layers() -> None:
    attempts: list[Attempt] = []
    plan(layered(8, 2), budget=BUDGET, on_attempt=attempts.append)
    tried = {attempt.placement for attempt in attempts if attempt.method == "greedy"}
    assert tried >= {"one_per_rank", "wave", "loop", "loop x3", "loop x4"}


def test_placements_with_a_good_enough_plan_get_no_longer_look() -> None:
    attempts: list[Attempt] = []
    problem = layered(16, 2, ranks=[{"memory_limit_bytes": 12}] * 2)
    plan(problem, budget=replace(BUDGET, gap=1.0), on_attempt=attempts.append)
    looked_at = [attempt.placement for attempt in attempts if attempt.method == "greedy"]
    assert len(looked_at) == len(set(looked_at))


@pytest.mark.parametrize(
    ("memory", "budget", "placements"),
    [
        (4, BUDGET, ["region_wave", "region_wave x4"]),
        (4, replace(BUDGET, gap=1.0), []),
        (None, replace(BUDGET, time_limit_s=0.0), []),
    ],
    ids=["time is left", "good enough", "none is left"],
)
def test_time_that_the_best_placement_leaves_is_for_others_that_may_beat_it(
    memory: int | None, budget: Budget, placements: list[str]
) -> None:
    attempts: list[Attempt] = []
    ranks = [{"cluster": each, "memory_limit_bytes": memory} for each in ("us", "eu")]
    problem = layered(8, 2, ranks=ranks, links=[link("us", "eu", 2, 0), link("eu", "us", 2, 0)])
    plan(problem, budget=budget, on_attempt=attempts.append)
    longer = (each.placement for each in attempts if each.method in ("improve", "optimal"))
    assert list(dict.fromkeys(longer)) == placements


@pytest.mark.parametrize(("time_limit_s", "is_tried"), [(0.001, False), (60.0, True)])
def test_rules_are_tried_on_layers_where_there_is_time(time_limit_s: float, is_tried: bool) -> None:
    attempts: list[Attempt] = []
    budget = Budget(iterations=1, time_limit_s=time_limit_s)
    plan(layered(8, 2), budget=budget, on_attempt=attempts.append)
    tried = {attempt.method for attempt in attempts}
    assert ("crosspipe-greedy" in tried) is is_tried
    assert {"1f1b", "zb-v", "interleaved", "greedy"} <= tried


@pytest.mark.parametrize(("time_limit_s", "is_tried"), [(0.001, False), (math.inf, True)])
def test_placements_of_many_ops_are_tried_where_there_is_time(
    time_limit_s: float, is_tried: bool
) -> None:
    attempts: list[Attempt] = []
    budget = Budget(iterations=1, time_limit_s=time_limit_s)
    plan(layered(8, 2, num_microbatches=600), budget=budget, on_attempt=attempts.append)
    tried = {attempt.placement for attempt in attempts}
    assert ("loop x3" in tried) is is_tried
    assert "one_per_rank" in tried


def test_placements_of_many_ops_are_tried_where_no_other_has_room() -> None:
    layers = [{**UNIT_STAGE, "weight_bytes": weight} for weight in (10, 10, 1, 1)]
    ranks = [{"memory_limit_bytes": 13}] * 2
    problem = layered(4, 2, layers=layers, ranks=ranks, num_microbatches=1000)
    assert len(plan(problem, budget=Budget(time_limit_s=0.0)).problem.stages) == 4


def test_what_is_too_large_for_the_solver_leaves_all_the_time_to_improve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt, given_s = Place.attempt, dict[str, float]()

    def noted(place: Place, method: Method, budget: Budget) -> Attempt:
        given_s[method.name] = budget.time_limit_s
        return attempt(place, method, budget)

    monkeypatch.setattr(Place, "attempt", noted)
    fields = {"num_stages_per_rank": 2, "ranks": [{"memory_limit_bytes": 4}] * 2}
    problem = layered(4, 2, num_microbatches=900, links=[link(0, 1, 4, 0)], **fields)
    plan(problem, budget=Budget(iterations=1, time_limit_s=600.0), patterns=[Pattern.WAVE])
    assert "optimal" not in given_s
    assert given_s["improve"] > 500


def test_plan_is_out_of_time_where_no_search_had_any() -> None:
    fields = {"num_stages_per_rank": 2, "ranks": [{"memory_limit_bytes": 4}] * 2}
    problem = layered(4, 2, num_microbatches=2000, links=[link(0, 1, 4, 0)], **fields)
    attempts: list[Attempt] = []
    made = plan(
        problem,
        budget=Budget(time_limit_s=0.0),
        patterns=[Pattern.LOOP, Pattern.WAVE],
        on_attempt=attempts.append,
    )
    searched = {attempt.placement for attempt in attempts if attempt.method == "greedy"}
    assert (made.method, searched) == ("zb-v", {"loop"})
    assert made.status == "time_limit"


def test_single_search_tries_uneven_layers_too() -> None:
    attempts: list[Attempt] = []
    problem = layered(20, 2, ranks=[{"memory_limit_bytes": 20}] * 2)
    plan(problem, method="greedy", budget=BUDGET, on_attempt=attempts.append)
    made = [attempt.plan for attempt in attempts if "slant" in attempt.placement]
    layers = [each.problem.stages[0].layers for each in made if each]
    assert len(set(layers)) > 1


def test_no_cut_of_the_layers_is_tried_twice() -> None:
    attempts: list[Attempt] = []
    plan(
        layered(16, 2, ranks=[{"memory_limit_bytes": 12}] * 2),
        method="greedy",
        budget=BUDGET,
        on_attempt=attempts.append,
    )
    cuts = [
        [(stage.rank, stage.layers) for stage in attempt.plan.problem.stages]
        for attempt in attempts
        if attempt.plan
    ]
    assert any("slant" in attempt.placement for attempt in attempts)
    assert all(cuts.count(cut) == 1 for cut in cuts)


def test_fixed_method_keeps_to_even_layers() -> None:
    attempts: list[Attempt] = []
    plan(layered(16, 2), method="1f1b", budget=BUDGET, on_attempt=attempts.append)
    assert [attempt.placement for attempt in attempts] == ["one_per_rank"]


def test_patterns_may_be_narrowed() -> None:
    made = plan(layered(8, 2), budget=BUDGET, patterns=[Pattern.ONE_PER_RANK])
    assert made.problem.rank_of_stage == (0, 1)


def test_stages_per_rank_may_be_given() -> None:
    made = plan(layered(9, 2, num_stages_per_rank=3), budget=BUDGET)
    assert made.problem.rank_of_stage in ((0, 1, 0, 1, 0, 1), (0, 1, 1, 0, 0, 1))


@pytest.mark.parametrize(
    ("method", "patterns", "message"),
    [
        ("1f1b", [*Pattern], r"num_stages_per_rank: 1f1b has no .* \(one_per_rank: one stage on"),
        (
            "auto",
            [Pattern.WAVE],
            r"num_stages_per_rank: auto has no .* \(wave: two stages per rank",
        ),
        ("greedy", [Pattern.WAVE], "num_stages_per_rank: greedy has no placement"),
        ("zb-v", [Pattern.LOOP], "patterns: zb-v needs wave"),
        ("auto", [], "patterns: auto needs one"),
    ],
)
def test_method_without_a_placement(method: str, patterns: list[Pattern], message: str) -> None:
    problem = layered(9, 2, num_stages_per_rank=3)
    with pytest.raises(ProblemError, match=message):
        plan(problem, method=method, patterns=patterns)


def test_equal_placements_do_not_hide_the_one_that_a_method_needs() -> None:
    """On one rank a loop is a wave."""
    assert plan(layered(4, 1), method="interleaved").problem.rank_of_stage == (0, 0)


def test_more_stages_than_layers() -> None:
    with pytest.raises(ProblemError, match=r"4 stages .* are more than the 3 layers"):
        plan(layered(3, 2), method="zb-v", budget=BUDGET)


def test_too_few_layers_for_any_placement() -> None:
    with pytest.raises(ProblemError, match=r"2 stages \(1 on each of 2 .* than the 1 layers"):
        plan(layered(1, 2), budget=BUDGET)


@pytest.mark.parametrize("method", ["auto", "greedy"])
def test_layers_in_too_little_memory_name_the_least_that_would_do(method: str) -> None:
    layers = [{**UNIT_STAGE, "weight_bytes": weight} for weight in (10, 1, 1, 1)]
    ranks = [{"memory_limit_bytes": limit} for limit in (9, 9)]
    problem = layered(4, 2, layers=layers, ranks=ranks)
    with pytest.raises(InfeasibleError, match=r"rank 0 .* 9 is 2 bytes too few; .* needs 11$"):
        plan(problem, method=method, budget=BUDGET)


def test_layers_are_cut_to_fit_into_memory() -> None:
    stage = {**UNIT_STAGE, "weight_bytes": 10}
    ranks = [{"memory_limit_bytes": limit} for limit in (15, 60)]
    made = plan(layered(4, 2, layers=[stage] * 4, ranks=ranks), budget=BUDGET)
    stages = sorted(made.problem.stages, key=lambda stage: stage.rank)
    assert [len(range(*stage.layers or ())) for stage in stages] == [1, 3]


def test_latency_makes_greedy_win() -> None:
    problem = make_problem((0, 1), 6, links=[link(0, 1, 3, 1), link(1, 0, 3, 1)])
    made = plan(problem, budget=BUDGET)
    assert made.timeline.makespan_ns < plan(problem, method="1f1b").timeline.makespan_ns
