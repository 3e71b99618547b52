import pytest
from hypothesis import given, settings

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.fixed import one_forward_one_backward
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import make_problem, problems, regions_problem


@settings(max_examples=100)
@given(problems())
def test_any_problem_gets_a_valid_schedule(problem: Problem) -> None:
    schedule = crosspipe_greedy(problem).schedule
    validate(problem, schedule)
    simulate(problem, schedule)


def test_phases_of_the_first_rank() -> None:
    problem = regions_problem(2, 4, memory=2)
    first = crosspipe_greedy(problem).schedule.ranks[0]
    assert " ".join(str(op) for op in first[:4]) == "0F0 0F1 0I0 0W0"


def test_the_last_rank_turns_as_soon_as_it_can() -> None:
    last = crosspipe_greedy(regions_problem(2, 4, memory=4)).schedule.ranks[1]
    assert " ".join(str(op) for op in last[:4]) == "1F0 1I0 1F1 1I1"


@pytest.mark.parametrize(("num_microbatches", "memory"), [(16, 8), (32, 16)])
@pytest.mark.parametrize("num_clusters", [2, 4])
@pytest.mark.parametrize(
    ("latency_us", "occupancy_us"), [(0, 0), (0.25, 0.25), (0.25, 2), (2, 0.25), (2, 2)]
)
def test_equal_stages_are_within_2_percent_or_so_of_the_bound(
    num_microbatches: int, memory: int, num_clusters: int, latency_us: float, occupancy_us: float
) -> None:
    problem = regions_problem(
        8,
        num_microbatches,
        memory=memory,
        num_clusters=num_clusters,
        latency_us=latency_us,
        occupancy_us=occupancy_us,
    )
    timeline = simulate(problem, crosspipe_greedy(problem).schedule)
    assert timeline.makespan_ns <= 1.025 * bounds_of(problem).makespan_ns


def test_delays_cost_it_less_than_1f1b() -> None:
    problem = regions_problem(8, 16, memory=8, latency_us=2.0, occupancy_us=0.25)
    ours, fixed = crosspipe_greedy(problem).schedule, one_forward_one_backward(problem)
    assert simulate(problem, ours).makespan_ns < 0.8 * simulate(problem, fixed).makespan_ns


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="rank 0"):
        crosspipe_greedy(make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 1}))
