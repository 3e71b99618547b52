"""What the solver proves, against a model that knows nothing of bounds."""

import pytest
from hypothesis import assume, given, settings

from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.problem import Problem, problem_json
from tests.unit.builders import link, make_problem, problems
from tests.unit.plain_model import has_schedule_within

SHARING = ((0, 1, 0), (0, 1, 1, 0))  # several stages in the memory of one rank


def without_room(placement: tuple[int, ...], num_microbatches: int) -> Problem:
    """Where only memory forbids a shorter step."""
    links = [link(0, 1, 2, 0), link(1, 0, 2, 0)]
    return make_problem(placement, num_microbatches, rank={"memory_limit_bytes": 3}, links=links)


def holds(problem: Problem) -> bool | None:
    """Whether nothing contradicts what the solver proves; None: not all found out in time."""
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, effort=0.05, time_limit_s=60.0, workers=1)
    data = problem_json(problem)
    is_possible = has_schedule_within(data, solution.makespan_ns)
    is_beaten = has_schedule_within(data, solution.lower_bound_ns - 1)
    if is_possible is False or is_beaten:
        return False
    return None if None in (is_possible, is_beaten) else True


@pytest.mark.parametrize(
    "problem", [without_room((0, 1, 0), 3), without_room((0, 1, 1, 0), 2)], ids=["turn", "wave"]
)
def test_nothing_is_shorter_than_what_is_proven_without_room(problem: Problem) -> None:
    assert holds(problem)


@settings(max_examples=60)
@given(problems(SHARING, most_microbatches=3))
def test_nothing_is_shorter_than_what_is_proven_in_shared_memory(problem: Problem) -> None:
    outcome = holds(problem)
    assume(outcome is not None)
    assert outcome


@settings(max_examples=80)
@given(problems(most_microbatches=3))
def test_nothing_is_shorter_than_what_is_proven(problem: Problem) -> None:
    outcome = holds(problem)
    assume(outcome is not None)
    assert outcome
