"""Orders of a problem into hints for CP-SAT, and its solutions into orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crosspipe_ray.costs import StageCosts
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.cpsat.model import Key, Model
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.timeline import Timeline

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


def add_hint(model: Model, timeline: Timeline) -> None:
    """Tells a model the starts of a known order."""
    for span in (span for spans in timeline.ranks for span in spans):
        stage, kind, m = span.op
        assert m is not None, "compute ops have a microbatch"
        key = stage, Kind.I if kind is Kind.B else kind, m
        model.model.add_hint(model.starts[key], span.start_ns // model.unit_ns)
    for message in timeline.sends:
        stage, kind, m = message.op
        assert m is not None, "messages have a microbatch"
        key = stage, Kind.F if kind is Kind.SEND_F else Kind.I, m
        if key in model.messages:
            model.model.add_hint(model.messages[key], message.start_ns // model.unit_ns)


def solved_order(
    problem: Problem, costs: Sequence[StageCosts], model: Model, solver: cp_model.CpSolver
) -> Order:
    """The order of a solution."""
    ranks: list[list[tuple[int, int, int, int, Op]]] = [[] for _ in problem.ranks]
    for key, variable in model.starts.items():
        stage, kind, m = key
        if kind is not Kind.W or not problem.is_fused(stage):
            start = solver.value(variable)
            line = stage if kind is Kind.F else 2 * len(costs) - stage + (kind is Kind.W)
            op = Op(stage, Kind.B if kind is Kind.I and problem.is_fused(stage) else kind, m)
            ranks[costs[stage].rank].append((start, start + model.duration(key), m, line, op))
    schedule = Schedule.of([entry[-1] for entry in sorted(ops)] for ops in ranks)
    return Order(schedule, _sends(costs, model, solver))


def _sends(
    costs: Sequence[StageCosts], model: Model, solver: cp_model.CpSolver
) -> tuple[Op, ...] | None:
    """All timed messages; one that occupies nothing leaves when its op ends."""
    sends = []
    for key, variable in model.starts.items():
        stage, kind, m = key
        transfer = costs[stage].transfer(kind)
        if transfer and transfer.route:
            at = _message_start(key, model, solver, solver.value(variable))
            sends.append((at, stage, kind, m, Op(stage, transfer.kind, m)))
    return tuple(entry[-1] for entry in sorted(sends)) or None


def _message_start(key: Key, model: Model, solver: cp_model.CpSolver, op_start: int) -> int:
    if key in model.messages:
        return int(solver.value(model.messages[key]))
    return op_start + model.duration(key)
