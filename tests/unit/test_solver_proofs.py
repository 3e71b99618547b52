"""What the solver proves, against a model that knows nothing of bounds."""

from hypothesis import example, given, settings

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


@settings(max_examples=60)
@example(without_room((0, 1, 0), 3))
@example(without_room((0, 1, 1, 0), 2))
@given(problems(SHARING, most_microbatches=3))
def test_nothing_is_shorter_than_what_is_proven(problem: Problem) -> None:
    known = greedy_order(problem, iterations=1)
    solution = solve(problem, known=known, effort=0.05, time_limit_s=60.0, workers=1)
    data = problem_json(problem)
    assert has_schedule_within(data, solution.makespan_ns) is not False
    assert has_schedule_within(data, solution.lower_bound_ns - 1) is not True
