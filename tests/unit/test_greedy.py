from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.planners.bounds.makespan import lower_bound_ns
from crosspipe_ray.planners.greedy.passes import Bias, ListScheduler
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import make_problem, problems, regions_problem

BIASES = st.builds(
    Bias,
    patience=st.tuples(*[st.sampled_from((0.0, 0.5, 1.5))] * 3),
    goal=st.sampled_from((0.0, 1.0, 1.1)),
    offset=st.tuples(*[st.integers(-9, 9)] * 3),
    slope=st.tuples(*[st.integers(-9, 9)] * 3),
    cap=st.sampled_from((None, 1.0, 3.0)),
    cap_slope=st.sampled_from((0.0, 1.0)),
)


def makespan_us(problem: Problem) -> float:
    return greedy_order(problem, time_limit_s=60.0).timeline(problem).makespan_ns / 1000


@settings(max_examples=300)
@given(problems(), BIASES)
def test_any_urgency_gives_a_valid_schedule(problem: Problem, bias: Bias) -> None:
    scheduler = ListScheduler(problem)
    makespan_ns, state = scheduler.forward(scheduler.tails, bias)
    order = scheduler.order(state)
    validate(problem, order.schedule)
    assert simulate(problem, order.schedule, send_order=order.sends).makespan_ns >= makespan_ns


@given(problems(), BIASES)
def test_no_rank_waits_for_what_it_would_not_delay(problem: Problem, bias: Bias) -> None:
    scheduler = ListScheduler(problem)
    starts = [
        list(scheduler.forward(scheduler.tails, replace(bias, patience=(each,) * 3))[1].starts)
        for each in (1.0, 9.0)
    ]
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    "placement", [(0, 1, 2, 3), (0, 1, 2, 3, 3, 2, 1, 0), (0, 1, 2, 3) * 3, (0, 0, 1, 1, 0, 1)]
)
def test_memory_for_one_microbatch_is_enough(placement: tuple[int, ...]) -> None:
    num_visits = len(placement) // len(set(placement))
    problem = make_problem(placement, 6, rank={"memory_limit_bytes": num_visits})
    validate(problem, greedy_order(problem).schedule)


def test_less_memory_than_one_microbatch_is_refused() -> None:
    with pytest.raises(InfeasibleError, match=r"rank 0 .* 1 bytes too few"):
        greedy_order(make_problem((0, 1, 1, 0), 4, rank={"memory_limit_bytes": 1}))


def test_same_seed_same_order() -> None:
    problem = regions_problem(4, 8, memory=4, latency_us=1.5, occupancy_us=0.5)
    first, again = (greedy_order(problem, time_limit_s=60.0, seed=3) for _ in range(2))
    assert first == again


def test_more_iterations_are_never_worse() -> None:
    problem = regions_problem(4, 8, memory=3, latency_us=1.5, occupancy_us=0.5)
    few, many = (
        greedy_order(problem, time_limit_s=60.0, iterations=n).timeline(problem) for n in (2, 40)
    )
    assert many.makespan_ns <= few.makespan_ns


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_best_is_told_even_if_it_comes_last(iterations: int) -> None:
    stage = {"backward_input_us": 1.28, "backward_weight_us": 0.48}
    wave = Pattern.WAVE.positions(3, 2)
    problem = make_problem(wave, 8, rank={"memory_limit_bytes": 7}, stage=stage)
    told: list[int] = []
    order = greedy_order(
        problem,
        time_limit_s=60.0,
        iterations=iterations,
        on_progress=lambda makespan_ns, _: told.append(makespan_ns),
    )
    assert told[-1] == order.timeline(problem).makespan_ns
    assert told == sorted(set(told), reverse=True)


@pytest.mark.parametrize(
    ("latency_us", "occupancy_us", "wanted_us"), [(0, 0, 55), (0.25, 2, 64.5), (2, 2, 71)]
)
def test_known_optima_of_two_regions(
    latency_us: float, occupancy_us: float, wanted_us: float
) -> None:
    problem = regions_problem(8, 16, memory=8, latency_us=latency_us, occupancy_us=occupancy_us)
    assert makespan_us(problem) <= wanted_us


@pytest.mark.parametrize(
    ("latency_us", "occupancy_us", "optimum_us"),
    [(0.25, 0.25, 103.5), (2, 0.25, 105.25), (2, 2, 107)],
)
def test_known_optima_with_twice_the_memory(
    latency_us: float, occupancy_us: float, optimum_us: float
) -> None:
    problem = regions_problem(8, 32, memory=16, latency_us=latency_us, occupancy_us=occupancy_us)
    assert makespan_us(problem) == optimum_us


def test_known_optimum_of_four_regions() -> None:
    problem = regions_problem(8, 16, memory=8, latency_us=2, occupancy_us=2, num_clusters=4)
    assert makespan_us(problem) == 103


def test_f_and_i_that_meet_fall_into_step() -> None:
    problem = regions_problem(
        16, 48, memory=16, latency_us=0.25, occupancy_us=2, num_clusters=4,
        stage={"backward_input_us": 1.28, "backward_weight_us": 0.48},
    )  # fmt: skip
    order = greedy_order(problem, time_limit_s=60.0, iterations=24)
    assert order.timeline(problem).makespan_ns <= 1.01 * lower_bound_ns(problem)


def test_gathers_are_waited_for() -> None:
    problem = make_problem((0, 1), 3, stage={"gather_us": 4, "reduce_us": 2})
    validate(problem, greedy_order(problem).schedule)


def test_fused_stages_run_b() -> None:
    problem = make_problem((0, 1), 3, fused_backward=True)
    assert {op.kind.name for ops in greedy_order(problem).schedule.ranks for op in ops} == {
        "F",
        "B",
    }
