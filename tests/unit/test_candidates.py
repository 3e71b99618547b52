from __future__ import annotations

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.costs import missing_bytes
from crosspipe_ray.planners.candidates import candidates
from crosspipe_ray.planners.placement import Pattern, place
from crosspipe_ray.problem import Problem
from tests.unit.builders import UNIT_STAGE


def layered(clusters: str, num_layers: int, **fields: object) -> Problem:
    """One rank per letter."""
    data = {
        "num_microbatches": 4,
        "ranks": [{"cluster": name} for name in clusters],
        "layers": [UNIT_STAGE] * num_layers,
        **fields,
    }
    return Problem.model_validate(data)


def test_region_patterns_stay_in_a_region() -> None:
    problem = layered("aabb", 8)
    tried = candidates(problem, [*Pattern])
    made = {each.name: each.placed(problem).rank_of_stage for each in tried}
    assert made == {
        "one_per_rank": (0, 1, 2, 3),
        "wave": (0, 1, 2, 3, 3, 2, 1, 0),
        "loop": (0, 1, 2, 3, 0, 1, 2, 3),
        "region_wave": (0, 1, 1, 0, 2, 3, 3, 2),
        "region_loop": (0, 1, 0, 1, 2, 3, 2, 3),
    }


def test_more_visits_where_there_are_layers() -> None:
    problem = layered("aabb", 16)
    names = {each.name for each in candidates(problem, [Pattern.REGION_WAVE])}
    assert names == {"region_wave", "region_wave x3", "region_wave x4"}


def test_equal_placements_are_tried_once() -> None:
    problem = layered("aa", 4)
    names = {each.name for each in candidates(problem, [Pattern.WAVE, Pattern.REGION_WAVE])}
    assert names == {"wave"}


def test_unequal_memory_is_tried_both_ways() -> None:
    problem = layered("ab", 4, ranks=[{"memory_limit_bytes": limit} for limit in (8, 9)])
    tried = candidates(problem, [Pattern.ONE_PER_RANK])
    made = {each.name: each.placed(problem).rank_of_stage for each in tried}
    assert made == {"one_per_rank": (1, 0), "one_per_rank reversed": (0, 1)}


@given(
    st.lists(st.integers(1, 20), min_size=4, max_size=7),
    st.lists(st.integers(21, 50), min_size=4, max_size=4),
)
def test_layers_that_fit_in_any_order_of_ranks_are_placed(
    weights: list[int], limits: list[int]
) -> None:
    problem = layered(
        "abcd",
        0,
        ranks=[{"memory_limit_bytes": limit} for limit in limits],
        layers=[{**UNIT_STAGE, "weight_bytes": weight} for weight in weights],
    )
    tried = candidates(problem, [Pattern.ONE_PER_RANK])
    least = min(max(missing_bytes(each.placed(problem))) for each in tried)
    ways = [
        place(problem, Pattern.ONE_PER_RANK, num_stages_per_rank=1, order=order)
        for order in permutations(range(4))
    ]
    assert (least == 0) == any(max(missing_bytes(way)) == 0 for way in ways)


def test_slants_take_work_from_the_first_ranks() -> None:
    problem = layered("ab", 20)
    (candidate,) = candidates(problem, [Pattern.ONE_PER_RANK])
    spans = [each.placed(problem).stages[0].layers for each in candidate.slanted()]
    firsts = [end - first for first, end in filter(None, spans)]
    assert firsts[0] < 10
    assert firsts == sorted(firsts, reverse=True)


def test_given_stages_have_no_slant() -> None:
    problem = layered("ab", 20)
    placed = candidates(problem, [Pattern.ONE_PER_RANK])[0].placed(problem)
    assert candidates(placed, list(Pattern))[0].slanted() == []
