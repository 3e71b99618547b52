from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.costs import missing_bytes
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.planners.placement import Pattern, follows, place
from crosspipe_ray.problem import Problem
from tests.unit.builders import UNIT_STAGE, make_problem


def layered(*works_us: float, num_ranks: int = 2, **fields: Any) -> Problem:
    layers = [
        {
            "forward_us": work,
            "backward_input_us": work,
            "backward_weight_us": work,
            "activation_bytes": 10 + index,
            "freed_by_backward_input_bytes": 1,
            "output_bytes": 100 + index,
            "input_gradient_bytes": 200 + index,
            "weight_bytes": 1000,
            "optimizer_bytes": 2000,
        }
        for index, work in enumerate(works_us)
    ]
    data = {"num_microbatches": 4, "ranks": [{}] * num_ranks, "layers": layers, **fields}
    return Problem.model_validate(data)


@pytest.mark.parametrize(
    ("pattern", "visits", "positions"),
    [
        (Pattern.ONE_PER_RANK, 1, [0, 1, 2]),
        (Pattern.WAVE, 2, [0, 1, 2, 2, 1, 0]),
        (Pattern.LOOP, 2, [0, 1, 2, 0, 1, 2]),
        (Pattern.LOOP, 3, [0, 1, 2, 0, 1, 2, 0, 1, 2]),
    ],
)
def test_pattern_is_recognised_by_its_positions(
    pattern: Pattern, visits: int, positions: list[int]
) -> None:
    assert pattern.positions(3, visits) == positions
    problem = make_problem(positions, 2)
    assert [each for each in Pattern if follows(problem, each)] == [pattern]


def test_ranks_may_stand_in_any_order() -> None:
    assert follows(make_problem((2, 0, 1, 1, 0, 2), 2), Pattern.WAVE)
    assert not follows(make_problem((2, 0, 1, 1, 2, 0), 2), Pattern.WAVE)


def test_other_placements_follow_no_pattern() -> None:
    assert not any(follows(make_problem((0, 0, 1), 2), pattern) for pattern in Pattern)


def test_one_rank_with_two_stages_is_wave_and_loop() -> None:
    problem = make_problem((0, 0), 2)
    assert follows(problem, Pattern.WAVE)
    assert follows(problem, Pattern.LOOP)


def test_layers_are_summed_into_stages() -> None:
    first, second = place(layered(1, 1, 2), Pattern.ONE_PER_RANK, num_stages_per_rank=1).stages
    assert (first.layers, second.layers) == ((0, 2), (2, 3))
    assert (first.forward_us, second.forward_us) == (2, 2)
    assert (first.activation_bytes, first.freed_by_backward_input_bytes) == (21, 2)
    assert (first.weight_bytes, first.optimizer_bytes) == (2000, 4000)


def test_border_of_a_stage_is_that_of_its_outer_layers() -> None:
    first, second = place(layered(1, 1, 2), Pattern.ONE_PER_RANK, num_stages_per_rank=1).stages
    assert (first.output_bytes, first.input_gradient_bytes) == (101, 200)
    assert (second.output_bytes, second.input_gradient_bytes) == (102, 202)


def test_placed_problem_has_stages_in_place_of_layers() -> None:
    placed = place(layered(1, 1, 1, 1), Pattern.WAVE, num_stages_per_rank=2)
    assert placed.rank_of_stage == (0, 1, 1, 0)
    assert placed.layers == ()


@pytest.mark.parametrize(
    ("pattern", "visits", "wanted"), [(Pattern.ONE_PER_RANK, 1, [4, 8]), (Pattern.WAVE, 2, [4, 8])]
)
def test_slant_is_the_same_for_all_visits(pattern: Pattern, visits: int, wanted: list[int]) -> None:
    made = place(layered(*[1] * 12), pattern, num_stages_per_rank=visits, slant=1 / 3)
    sizes = [
        sum(len(range(*made.stages[s].layers or ())) for s in on) for on in made.stages_of_rank
    ]
    assert sizes == wanted


def test_more_stages_than_layers() -> None:
    with pytest.raises(ProblemError, match=r"4 stages .* are more than the 3 layers"):
        place(layered(1, 1, 1), Pattern.WAVE, num_stages_per_rank=2)


def limited(weights: list[int], limits: list[int | None]) -> Problem:
    """Layers of equal work, which hold a weight each and an activation of one byte."""
    layers = [{**UNIT_STAGE, "weight_bytes": weight} for weight in weights]
    ranks = [{"memory_limit_bytes": limit} for limit in limits]
    return Problem.model_validate({"num_microbatches": 4, "ranks": ranks, "layers": layers})


def placed_layers(problem: Problem, pattern: Pattern, visits: int) -> list[tuple[int, int] | None]:
    return [stage.layers for stage in place(problem, pattern, num_stages_per_rank=visits).stages]


def test_little_memory_takes_few_layers() -> None:
    problem = limited([10] * 4, [15, 60])
    assert placed_layers(problem, Pattern.ONE_PER_RANK, 1) == [(0, 1), (1, 4)]


def test_stages_of_a_rank_share_its_memory() -> None:
    problem = limited([10] * 8, [22, None])
    assert placed_layers(problem, Pattern.WAVE, 2) == [(0, 1), (1, 4), (4, 7), (7, 8)]


def test_memory_for_the_even_cut_leaves_it_even() -> None:
    # Half of the first rank's limit is too little for its first stage, but not the whole.
    problem = limited([10, 1, 1, 1], [14, None])
    assert placed_layers(problem, Pattern.WAVE, 2) == [(0, 1), (1, 2), (2, 3), (3, 4)]


@given(
    st.lists(st.integers(0, 9), min_size=3, max_size=7),
    st.lists(st.none() | st.integers(1, 30), min_size=3, max_size=3),
)
def test_no_cut_lacks_fewer_bytes(weights: list[int], limits: list[int | None]) -> None:
    def lacking(borders: tuple[int, ...]) -> int:
        parts = pairwise([0, *borders, len(weights)])
        held = [sum(weights[first:end]) + end - first for first, end in parts]
        pairs = zip(held, limits, strict=True)
        return max(0, *(have - limit for have, limit in pairs if limit is not None), 0)

    placed = place(limited(weights, limits), Pattern.ONE_PER_RANK, num_stages_per_rank=1)
    least = min(map(lacking, combinations(range(1, len(weights)), 2)))
    assert max(missing_bytes(placed)) == least
