from __future__ import annotations

from itertools import combinations, groupby, pairwise, permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.planners.rank_order import best_order
from crosspipe_ray.problem import Problem
from tests.unit.builders import UNIT_STAGE, link, renamed


def layered(clusters: str, **fields: Any) -> Problem:
    """One rank per letter, one layer each."""
    data = {
        "num_microbatches": 4,
        "ranks": [{"cluster": name} for name in clusters],
        "layers": [UNIT_STAGE] * len(clusters),
        **fields,
    }
    return Problem.model_validate(data)


def with_latencies(clusters: str, latencies: dict[tuple[int, int], int]) -> Problem:
    """The same latency there and back."""
    links = [link(*ends, us, 0) for (a, b), us in latencies.items() for ends in ((a, b), (b, a))]
    return layered(clusters, links=links)


@st.composite
def scattered(draw: st.DrawFn, num_ranks: int) -> tuple[Problem, dict[tuple[int, int], int]]:
    """Ranks of three clusters, any two as far apart as it comes."""
    clusters = draw(st.text("abc", min_size=num_ranks, max_size=num_ranks))
    pairs = list(combinations(range(num_ranks), 2))
    times = draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs)))
    latencies = dict(zip(pairs, times, strict=True))
    return with_latencies(clusters, latencies), latencies


def length(latencies: dict[tuple[int, int], int], order: tuple[int, ...]) -> int:
    return sum(latencies[min(pair), max(pair)] for pair in pairwise(order))


def is_cluster_by_cluster(problem: Problem, order: tuple[int, ...]) -> bool:
    clusters = [problem.ranks[rank].cluster for rank in order]
    return len(list(groupby(clusters))) == len(set(clusters))


def test_ranks_of_a_cluster_are_neighbours() -> None:
    assert best_order(layered("abab")) == (0, 2, 1, 3)


def test_clusters_go_by_the_least_delay() -> None:
    latencies = {(0, 1): 9, (0, 2): 1, (1, 2): 1}
    assert best_order(with_latencies("acb", latencies)) == (0, 2, 1)


def test_most_memory_goes_first() -> None:
    ranks = [{"memory_limit_bytes": limit} for limit in (7, 9, None, 9)]
    assert best_order(layered("aaaa", ranks=ranks)) == (2, 1, 3, 0)


@given(scattered(5))
def test_few_ranks_go_the_shortest_way(drawn: tuple[Problem, dict[tuple[int, int], int]]) -> None:
    problem, latencies = drawn
    ways = [way for way in permutations(range(5)) if is_cluster_by_cluster(problem, way)]
    order = best_order(problem)
    assert order in ways
    assert length(latencies, order) == min(length(latencies, way) for way in ways)


@settings(max_examples=20)
@given(scattered(12))
def test_no_turn_shortens_the_way_of_many(
    drawn: tuple[Problem, dict[tuple[int, int], int]],
) -> None:
    problem, latencies = drawn
    order = best_order(problem)
    turned = [
        (*order[:first], *reversed(order[first:end]), *order[end:])
        for first, end in combinations(range(13), 2)
    ]
    ways = [way for way in turned if is_cluster_by_cluster(problem, way)]
    assert sorted(order) == list(range(12))
    assert is_cluster_by_cluster(problem, order)
    assert length(latencies, order) <= min(length(latencies, way) for way in ways)


@given(scattered(5), st.permutations(range(5)))
def test_names_of_ranks_do_not_matter(
    drawn: tuple[Problem, dict[tuple[int, int], int]], names: list[int]
) -> None:
    problem, latencies = drawn
    order = best_order(renamed(problem, names))
    again = tuple(names.index(rank) for rank in order)
    assert length(latencies, again) == length(latencies, best_order(problem))


def test_layers_go_along_the_fast_links_whatever_they_are_called() -> None:
    near = {(0, 2), (1, 2), (1, 3)}
    far = {pair: 0 if pair in near else 20 for pair in combinations(range(4), 2)}
    problem = with_latencies("aaaa", far)
    budget = Budget(iterations=6, time_limit_s=60.0)
    makespans = {
        plan(each, method="greedy", budget=budget).timeline.makespan_ns
        for each in (problem, renamed(problem, [0, 2, 1, 3]), renamed(problem, [3, 0, 2, 1]))
    }
    assert makespans == {15_000}
