import pytest
from hypothesis import given, settings

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.planners.fixed import one_forward_one_backward
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import validate
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


def test_delays_cost_it_less_than_1f1b() -> None:
    problem = regions_problem(8, 16, memory=8, latency_us=2.0, occupancy_us=0.25)
    ours, fixed = crosspipe_greedy(problem).schedule, one_forward_one_backward(problem)
    assert simulate(problem, ours).makespan_ns < 0.8 * simulate(problem, fixed).makespan_ns


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="rank 0"):
        crosspipe_greedy(make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 1}))
