import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosspipe_ray.compiled import SWITCH
from crosspipe_ray.planners.bounds.makespan import bounds_of, lower_bound_ns
from crosspipe_ray.planners.fixed import gpipe, zb_h1, zb_v
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.improve.climb import improved
from crosspipe_ray.planners.methods import METHODS, Budget
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.phases import crosspipe_greedy
from crosspipe_ray.problem import Problem
from crosspipe_ray.rules import validate
from crosspipe_ray.simulate import simulate
from tests.unit.builders import link, make_problem, problem_data, problems, regions_problem


def makespan_us(problem: Problem, order: Order) -> float:
    return simulate(problem, order.schedule, send_order=order.sends).makespan_ns / 1000


def after(problem: Problem, known: Order, iterations: int, seed: int = 0) -> Order:
    return improved(problem, known, time_limit_s=60.0, iterations=iterations, seed=seed)


@settings(max_examples=200)
@given(problems(), st.integers(0, 3))
def test_orders_stay_valid_and_are_never_worse(problem: Problem, seed: int) -> None:
    known = crosspipe_greedy(problem)
    found = after(problem, known, 40, seed)
    validate(problem, found.schedule)
    assert lower_bound_ns(problem) / 1000 <= makespan_us(problem, found)
    assert makespan_us(problem, found) <= makespan_us(problem, known)


@pytest.mark.parametrize("placement", [(0, 1, 2, 3), (0, 1, 2, 3, 3, 2, 1, 0), (0, 1, 0, 1, 2, 2)])
def test_same_seed_and_iterations_same_order(placement: tuple[int, ...]) -> None:
    problem = make_problem(placement, 6, rank={"memory_limit_bytes": 6})
    known = crosspipe_greedy(problem)
    assert after(problem, known, 60, seed=3) == after(problem, known, 60, seed=3)


@pytest.mark.parametrize("placement", [(0, 1, 2, 3), (0, 1, 2, 2, 1, 0)])
def test_machine_code_makes_the_same_moves(
    placement: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [link(0, 1, 1.5, 0.5) | {"channel": "x"}, link(1, 0, 1.5, 0.5) | {"channel": "x"}]
    problem = make_problem(placement, 6, rank={"memory_limit_bytes": 8}, links=links)
    known, found = Order(zb_h1(problem) if len(placement) == 4 else zb_v(problem)), {}
    for wish in ("never", "always"):
        monkeypatch.setenv(SWITCH, wish)
        found[wish] = after(problem, known, 200, seed=5)
    assert found["never"] == found["always"]
    assert makespan_us(problem, found["always"]) < makespan_us(problem, known)


def test_reaches_the_optimum_from_a_bad_start() -> None:
    problem = regions_problem(4, 8, memory=8, latency_us=1.5, occupancy_us=0.5)
    start = Order(zb_h1(problem))
    optimum_us = lower_bound_ns(problem) / 1000
    assert makespan_us(problem, start) > 1.1 * optimum_us
    assert makespan_us(problem, after(problem, start, 2000)) == optimum_us


def test_a_full_memory_is_filled_with_f_s_of_other_stages() -> None:
    data = problem_data(
        (0, 1, 1, 0),
        6,
        rank={"memory_limit_bytes": 6},
        links=[link(0, 1, 2, 0), link(1, 0, 4, 0)],
    )
    fields = "forward_us", "backward_input_us", "backward_weight_us"
    times = (1, 2, 2), (2, 1, 2), (1, 3, 1), (1, 1, 1)
    for stage, each in zip(data["stages"], times, strict=True):
        stage |= dict(zip(fields, each, strict=True))
    problem = Problem.model_validate(data)
    start = crosspipe_greedy(problem)
    found = [after(problem, start, 3000, seed) for seed in range(3)]
    for order in found:
        validate(problem, order.schedule)
    best_us = min(makespan_us(problem, order) for order in found)
    assert best_us == 64  # the optimum by the solver; moves within blocks alone end at 65


def test_a_full_memory_is_kept_to() -> None:
    problem = regions_problem(4, 8, memory=2, latency_us=1.0, occupancy_us=0.5)
    found = after(problem, greedy_order(problem, iterations=1, time_limit_s=60.0), 300)
    validate(problem, found.schedule)


def test_messages_on_shared_channels_move_too() -> None:
    problem = regions_problem(4, 6, memory=12, latency_us=0.5, occupancy_us=2.0)
    twice = problem.model_copy(update={"stages": (*problem.stages, *problem.stages[::-1])})
    problem = Problem.model_validate(
        twice.model_dump() | {"stages": _on_ranks(twice, (0, 1, 2, 3, 3, 2, 1, 0))}
    )
    known = Order(zb_v(problem))
    found = after(problem, known, 500)
    assert found.sends is not None
    assert makespan_us(problem, found) < makespan_us(problem, known)


def test_messages_that_share_a_channel_and_take_no_time() -> None:
    links = [link(1, 0, 0, 0) | {"channel": "one"}, link(1, 2, 0, 0) | {"channel": "one"}]
    problem = make_problem((0, 1, 2, 2, 1, 0), 2, links=links)
    found = after(problem, crosspipe_greedy(problem), 100)
    validate(problem, found.schedule)


def _on_ranks(problem: Problem, ranks: tuple[int, ...]) -> list[dict[str, object]]:
    stages = problem.model_dump()["stages"]
    return [{**stage, "rank": rank} for stage, rank in zip(stages, ranks, strict=True)]


def test_fused_backward_of_a_split_stage_is_left_alone() -> None:
    problem = make_problem((0, 1), 3)
    known = Order(gpipe(problem))
    assert after(problem, known, 10) is known


def test_good_enough_is_left_alone() -> None:
    problem = make_problem((0, 1, 2), 4)
    known = crosspipe_greedy(problem)
    found = improved(problem, known, time_limit_s=60.0, iterations=100, enough_ns=1e12)
    assert makespan_us(problem, found) == makespan_us(problem, known)


def test_method_starts_from_greedy() -> None:
    problem = regions_problem(4, 8, memory=2, latency_us=1.0, occupancy_us=0.5)
    budget = Budget(time_limit_s=60.0, iterations=3)
    search, bounds = METHODS["improve"].search, bounds_of(problem)
    first, again = (search(problem, bounds, budget, None) for _ in range(2))
    validate(problem, first.order.schedule)
    assert first.order.schedule == again.order.schedule
