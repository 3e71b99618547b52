import pytest
from hypothesis import given, settings

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.errors import InputError, ScheduleError
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds.makespan import bounds_of, lower_bound_ns, tails_from_start
from crosspipe_ray.planners.portfolio import METHODS, Budget
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import link, make_problem, problems, regions_problem

BUDGET = Budget(iterations=6, time_limit_s=60.0)


@settings(max_examples=150)
@given(problems())
def test_no_schedule_is_shorter(problem: Problem) -> None:
    bound = lower_bound_ns(problem)
    for method in METHODS.values():
        if method.name == "optimal":
            continue  # test_cpsat, with a time limit of its own
        try:
            found = method.search(problem, bounds_of(problem), BUDGET, None)
            schedule = found.order.schedule
            validate(problem, schedule)
        except (InputError, ScheduleError):
            continue  # it needs another placement, or more memory
        assert simulate(problem, schedule).makespan_ns >= bound, method.name


def test_fused_backward_pays_the_op_overhead_once() -> None:
    problem = make_problem((0,), 2, rank={"op_overhead_us": 4})
    assert lower_bound_ns(problem) == 2 * (1 + 4 + 2 + 4) * 1000


@pytest.mark.parametrize(
    ("num_microbatches", "latency_us", "occupancy_us", "optimum_us"),
    [(16, 0, 0, 55), (32, 0.25, 0.25, 103.5), (32, 0.25, 2, 105.25), (32, 2, 2, 107)],
)
def test_bound_is_the_known_optimum_of_eight_ranks(
    num_microbatches: int, latency_us: float, occupancy_us: float, optimum_us: float
) -> None:
    problem = regions_problem(8, num_microbatches, latency_us=latency_us, occupancy_us=occupancy_us)
    assert lower_bound_ns(problem) == optimum_us * 1000


def test_one_microbatch_takes_its_chain() -> None:
    problem = make_problem((0, 1), 1, links=[link(0, 1, 5, 2), link(1, 0, 3, 2)])
    assert lower_bound_ns(problem) == (1 + 7 + 1 + 1 + 5 + 1 + 1) * 1000


def test_slow_channel_is_the_bound_of_many_microbatches() -> None:
    problem = make_problem((0, 1), 100, links=[link(0, 1, 0, 10)])
    assert lower_bound_ns(problem) == (1 + 100 * 10 + 1 + 1 + 1 + 1) * 1000


def test_stages_that_share_a_channel_add_up() -> None:
    both = [{**link(0, 1, 0, 10), "channel": "x"}, {**link(1, 0, 0, 10), "channel": "x"}]
    assert lower_bound_ns(make_problem((0, 1), 100, links=both)) == (1 + 200 * 10 + 2) * 1000


def test_data_parallel_communication_stands_at_both_ends() -> None:
    problem = make_problem((0,), 2, stage={"gather_us": 5, "reduce_us": 7})
    assert lower_bound_ns(problem) == (5 + 6 + 7) * 1000


def tails_of(problem: Problem) -> list[list[int]]:
    tails = tails_from_start(problem, stage_costs(problem), bounds_of(problem))
    return [list(map(int, row)) for row in tails]


def test_tail_of_an_op_counts_the_later_microbatches() -> None:
    tails = tails_of(make_problem((0, 1), 3))
    assert [tail // 1000 for tail in tails[Kind.W][:3]] == [3, 2, 1]
    # 0F0, then all of rank 1: three F, three I and three W.
    assert tails[Kind.F][0] == 10_000


def test_tail_knows_that_memory_makes_forwards_wait() -> None:
    free = tails_of(make_problem((0, 1), 4))
    tight = tails_of(make_problem((0, 1), 4, rank={"memory_limit_bytes": 1}))
    assert tight[Kind.W][0] > free[Kind.W][0]
