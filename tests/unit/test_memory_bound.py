import numpy as np

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.bounds.memory import memory_bound
from crosspipe_ray.planners.bounds.relaxation import least_durations
from crosspipe_ray.planners.cpsat.search import solve
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.problem import Problem
from tests.unit.builders import link, make_problem


def bound_us(problem: Problem) -> float:
    costs, bounds = stage_costs(problem), bounds_of(problem)
    durations = np.array([least_durations(problem, costs, s) for s in range(len(costs))])
    return memory_bound(problem, costs, bounds.heads, durations, bounds.tails) / 1000


def test_full_rank_waits_for_its_first_gradient() -> None:
    # Rank 0 runs two F, is full, and gets its first gradient at 1 + 10 + 2 + 10; ten ops remain.
    links = [link(0, 1, 10, 0), link(1, 0, 10, 0)]
    problem = make_problem((0, 1), 4, rank={"memory_limit_bytes": 2}, links=links)
    assert bound_us(problem) >= 23 + 10


def turning(
    num_microbatches: int, memory: int, *, delay_us: int, **times_us: tuple[int, int]
) -> Problem:
    """A wave over two ranks, of which the second, where it turns, has little memory."""
    links = [link(0, 1, delay_us, 0), link(1, 0, delay_us, 0)]
    data = make_problem((0, 1, 1, 0), num_microbatches, links=links).model_dump()
    data["ranks"][1]["memory_limit_bytes"] = memory
    for name, times in times_us.items():
        for stage, time in zip((1, 2), times, strict=True):
            data["stages"][stage][name] = time
    return Problem.model_validate(data)


def optimum_us(problem: Problem) -> float:
    solution = solve(problem, known=greedy_order(problem), time_limit_s=60.0)
    assert solution.makespan_ns == solution.lower_bound_ns
    return solution.makespan_ns / 1000


def test_memory_is_not_filled_with_the_longest_forwards_alone() -> None:
    # Two pairs of F's (2 x 10) fill its memory, not four of the later stage (4 x 9).
    problem = turning(4, 4, delay_us=40, forward_us=(1, 9))
    assert 283 <= bound_us(problem) <= optimum_us(problem)  # 276 with four


def test_idle_times_of_both_ends_add_up() -> None:
    # It waits with three pairs of F's held, and again at the end with work of three pairs left.
    problem = turning(6, 6, delay_us=10)
    assert bound_us(problem) == optimum_us(problem) == 89


def test_memory_full_of_forwards_of_one_stage_leaves_nothing_to_close_a_round_later() -> None:
    # It would fill its memory with F's of 4, but its first I's need the F's of 1.
    problem = turning(6, 6, delay_us=10, forward_us=(4, 1))
    assert bound_us(problem) == optimum_us(problem) == 101  # 92 by the first round alone


def test_what_is_left_at_the_end_is_not_all_inputs_that_must_go_on_their_way_back() -> None:
    # Three pairs are left after its last F. Their I's (3 x 8) do not fit in the 22 before the last
    # way back, and W's of other microbatches have no memory then.
    times = {"forward_us": (2, 2), "backward_input_us": (4, 4), "backward_weight_us": (0, 2)}
    problem = turning(6, 6, delay_us=6, **times)
    assert 98 < bound_us(problem) <= optimum_us(problem) == 99  # 97 by memory or by way alone


def test_no_limit_no_bound() -> None:
    assert bound_us(make_problem((0, 1, 1, 0), 4)) == 0


def test_wave_with_a_slow_link_is_certified() -> None:
    links = [link(0, 1, 6, 0), link(1, 0, 6, 0)]
    problem = make_problem((0, 1, 1, 0), 6, rank={"memory_limit_bytes": 6}, links=links)
    assert bound_us(problem) <= optimum_us(problem)
