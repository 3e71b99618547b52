"""Microbatches in pieces: what a piece costs, and how the number of pieces is chosen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.pieces import in_pieces, plan_in_pieces, shortest
from crosspipe_ray.planners.portfolio import Attempt, Budget, plan
from crosspipe_ray.problem import Problem

SLOW_LINK = Recipe(
    num_ranks=4, num_microbatches=8, latency_ratio=0.25, bandwidth_ratio=2.0, memory=1.0
)


def with_overhead(problem: Problem, op_overhead_us: float) -> Problem:
    ranks = [rank.model_copy(update={"op_overhead_us": op_overhead_us}) for rank in problem.ranks]
    return problem.model_copy(update={"ranks": tuple(ranks)})


def chosen(problem: Problem, *pieces: int) -> tuple[int, Plan, list[Attempt]]:
    attempts: list[Attempt] = []
    number, made = plan_in_pieces(
        problem, pieces, make=plan, budget=Budget(60.0, 50, 0), on_attempt=attempts.append
    )
    return number, made, attempts


def test_time_that_a_number_of_pieces_leaves_is_for_the_next() -> None:
    given_s: list[float] = []

    def cut_short(problem: Problem, *, budget: Budget, **_: object) -> Plan:
        given_s.append(budget.time_limit_s)
        return replace(plan(problem, method="1f1b"), status="time_limit")

    _, made = plan_in_pieces(
        generate(SLOW_LINK), (1, 2), make=cut_short, budget=Budget(60.0), on_attempt=print
    )
    assert given_s == pytest.approx([30.0, 60.0], rel=0.1)
    assert made.status == "gap"  # of all the time, nearly everything is left


@given(
    num_pieces=st.integers(1, 8),
    activation=st.integers(0, 999),
    freed=st.integers(0, 999),
    output=st.integers(0, 999),
)
def test_pieces_have_the_work_and_at_least_the_bytes_of_the_whole(
    num_pieces: int, activation: int, freed: int, output: int
) -> None:
    whole = generate(replace(SLOW_LINK, bandwidth_ratio=0.0))
    stage = whole.stages[0].model_copy(
        update={
            "activation_bytes": max(activation, freed),
            "freed_by_backward_input_bytes": freed,
            "output_bytes": output,
            "input_gradient_bytes": output,
            "weight_bytes": 7,
        }
    )
    whole = whole.model_copy(update={"stages": (stage, *whole.stages[1:])})
    cut = in_pieces(whole, num_pieces)
    piece = cut.stages[0]
    assert cut.num_microbatches == num_pieces * whole.num_microbatches
    assert num_pieces * piece.forward_us == pytest.approx(stage.forward_us)
    for name in ("activation_bytes", "output_bytes", "input_gradient_bytes"):
        together, needed = num_pieces * getattr(piece, name), getattr(stage, name)
        assert needed <= together < needed + num_pieces
    assert num_pieces * piece.freed_by_backward_input_bytes <= freed
    assert piece.weight_bytes == 7
    assert Problem.model_validate(cut.model_dump()) == cut


def test_over_a_slow_link_pieces_are_shorter() -> None:
    number, made, attempts = chosen(generate(SLOW_LINK), 1, 2, 4)
    assert (number, made.problem.num_microbatches) == (4, 32)
    whole_ns = min(it.makespan_ns for it in attempts if it.placement == "as given")
    assert made.timeline.makespan_ns < 0.75 * whole_ns
    assert {"as given in 2", "as given in 4"} < {it.placement for it in attempts}


def test_fixed_costs_decide_against_pieces() -> None:
    number, made, _ = chosen(with_overhead(generate(SLOW_LINK), 2000.0), 1, 2, 4)
    assert (number, made.problem.num_microbatches) == (1, 8)


def test_pieces_fit_where_whole_microbatches_do_not() -> None:
    problem = generate(replace(SLOW_LINK, memory=0.125))
    with pytest.raises(InfeasibleError):
        plan(problem)
    assert chosen(problem, 1, 2)[0] == 2


def test_too_little_for_any_number_of_pieces() -> None:
    problem = generate(replace(SLOW_LINK, memory=0.01))
    with pytest.raises(InfeasibleError, match="rank 0"):
        chosen(problem, 1, 2)


def test_the_fewest_of_equal_ones() -> None:
    made = plan(generate(SLOW_LINK), method="1f1b")
    assert shortest((4, 1, 2), lambda _: made)[0] == 1
