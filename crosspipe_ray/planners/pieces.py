"""Microbatches in pieces, so that messages overlap with the ops that make and take them.

A piece goes on to the next stage as soon as it is computed, and is computed there while the next
one is on its way: a message travels in k pieces, and so does its microbatch. For the clock, the
planners and the engine a piece is a smaller microbatch and nothing else. What it costs is that
every op and message pays its fixed part k times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from crosspipe_ray.errors import InfeasibleError
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.places import Allowance
from crosspipe_ray.planners.portfolio import Attempt, Budget
from crosspipe_ray.problem import Costs, Layer, Problem, Stage


def makespan_ns(made: Plan) -> int:
    """Of a plan, on the links as stated."""
    return made.timeline.makespan_ns


def in_pieces(problem: Problem, num_pieces: int) -> Problem:
    """The problem with k times as many microbatches, each of 1 / k the work and the bytes.

    Fixed costs (``op_overhead_us``, ``message_overhead_us``) stay as they are, and so do weights
    and data-parallel communication.

    Args:
        problem: with stages or with layers.
        num_pieces: of each microbatch.
    """
    stages = tuple(Stage(**_piece(stage, num_pieces)) for stage in problem.stages)
    layers = tuple(Layer(**_piece(layer, num_pieces)) for layer in problem.layers)
    return problem.model_copy(
        update={
            "num_microbatches": num_pieces * problem.num_microbatches,
            "stages": stages,
            "layers": layers,
        }
    )


def plan_in_pieces(
    problem: Problem,
    pieces: Sequence[int],
    *,
    make: Callable[..., Plan],
    budget: Budget,
    on_attempt: Callable[[Attempt], None],
    cost: Callable[[Plan], float] = makespan_ns,
) -> tuple[int, Plan]:
    """The best number of pieces by `in_pieces`, each with an equal share of the time left.

    Args:
        problem: in whole microbatches.
        pieces: numbers to choose from.
        make: plans a problem, as `portfolio.plan` does.
        budget: of all planning.
        on_attempt: told of each attempt as it is done.
        cost: of a plan; the least one wins.

    Raises:
        InfeasibleError: memory is too small for each of them; or whatever else ``make`` raises.
    """
    allowance = Allowance(budget)

    def make_in(num_pieces: int) -> Plan:
        num_left = sum(each >= num_pieces for each in pieces)
        return make(
            in_pieces(problem, num_pieces),
            budget=allowance.share(1 / num_left),
            on_attempt=lambda attempt: on_attempt(attempt.in_pieces(num_pieces)),
        )

    number, best = shortest(pieces, make_in, cost=cost)
    if best.status == "time_limit" and not allowance.is_spent:  # that of its share
        best = replace(best, status="gap")
    return number, best


def shortest(
    pieces: Sequence[int],
    make: Callable[[int], Plan],
    *,
    cost: Callable[[Plan], float] = makespan_ns,
) -> tuple[int, Plan]:
    """The number of pieces with the best plan, and that plan; the fewest of equal ones.

    Args:
        pieces: numbers to try.
        make: the plan of one of them.
        cost: of a plan; the least one wins.

    Raises:
        InfeasibleError: memory is too small for each of them.
    """
    made: dict[int, Plan] = {}
    for num_pieces in sorted(pieces):
        try:
            made[num_pieces] = make(num_pieces)
        except InfeasibleError as error:
            reason = error
    if not made:
        raise reason
    best = min(made, key=lambda num_pieces: cost(made[num_pieces]))
    return best, made[best]


def _piece(costs: Costs, num_pieces: int) -> dict[str, object]:
    """Fields of one piece; what is held or sent is rounded up, what is given back down."""
    fields = costs.model_dump()
    for name in ("forward_us", "backward_input_us", "backward_weight_us"):
        fields[name] /= num_pieces
    for name in ("activation_bytes", "output_bytes", "input_gradient_bytes"):
        if fields[name] is not None:
            fields[name] = -(-fields[name] // num_pieces)
    fields["freed_by_backward_input_bytes"] //= num_pieces
    return fields
