"""Improves an order by moves on its critical path: a tabu search over ranks and shared channels.

A longest path through the graph of an order is cut into blocks: nodes that run on one machine
without a pause. Only a move within a block can make the step shorter, or an exchange of a node in
it with one outside that has the memory it needs. Some are drawn, the one with the best estimate is
made, even if it is worse, and what it turned round stays so for a while (Nowicki and Smutnicki
1996; the estimate is of Balas and Vazacopoulos 1998).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from crosspipe_ray.compiled import Loop, as_arrays, as_lists
from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import Kind, Op
from crosspipe_ray.planners.greedy.network import net_of
from crosspipe_ray.planners.improve import longest_paths, moves, neighbourhood, tabu
from crosspipe_ray.planners.improve.disjunctive import BEST_NS, Jobs, Run, best_of, start_of
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import Problem

_HELPERS = (
    tabu.step, tabu.chosen, tabu.forbid, tabu.is_forbidden, tabu.pair, tabu.remember, tabu.copy,
    neighbourhood.critical_blocks, neighbourhood.last_node, neighbourhood.drawn_place,
    neighbourhood.drawn_partner, neighbourhood.reach, neighbourhood.may_turn, neighbourhood.lot,
    moves.move, moves.turn, moves.estimate, moves.rearrange, moves.exchange,
    longest_paths.begin, longest_paths.link, longest_paths.evaluate, longest_paths.num_sorted,
    longest_paths.run_forwards, longest_paths.run_backwards,
)  # fmt: skip
_CLIMB = Loop(tabu.climb, *_HELPERS)
_PYTHON_S = 2.5e-7  # of Python for a step, for a node
_STEPS_AT_ONCE = 32  # of Python between two looks at the clock, and of machine code a few thousand
_MANY_STEPS = 1024


def improved(
    problem: Problem,
    known: Order,
    *,
    time_limit_s: float,
    iterations: float,
    seed: int = 0,
    enough_ns: float = 0.0,
) -> Order:
    """A shorter order than a known one, or that itself.

    Args:
        problem: with stages, any placement.
        known: a valid order of it; one that runs B where the backward is split is not improved.
        time_limit_s: no new step starts after it.
        iterations: number of steps; with a generous time limit the result depends on it and the
            seed alone.
        seed: of the search.
        enough_ns: a makespan that is good enough.
    """
    deadline = time.monotonic() + time_limit_s
    if any(op.kind is Kind.B and not problem.is_fused(op.stage) for op in _ops(known)):
        return known
    net = net_of(problem, stage_costs(problem))
    timeline = known.timeline(problem)
    jobs, run = start_of(net, problem.num_microbatches, timeline, seed=seed)
    if not longest_paths.begin(jobs, run):
        raise AssertionError("an order with a timeline does not wait for itself")
    tabu.remember(run)
    run = _climb(jobs, run, iterations, int(enough_ns), deadline)
    order = best_of(problem, net, jobs, run)
    return order if order.timeline(problem).makespan_ns < timeline.makespan_ns else known


def _ops(order: Order) -> Iterator[Op]:
    return (op for ops in order.schedule.ranks for op in ops)


def _climb(jobs: Jobs, run: Run, num_steps: float, enough_ns: int, deadline: float) -> Run:
    """Steps until the deadline, in Python first and as machine code where that pays."""
    machine_code = None
    while num_steps > 0 and time.monotonic() < deadline:
        if run.numbers[BEST_NS] <= enough_ns:
            break
        size = int(min(num_steps, _MANY_STEPS if machine_code else _STEPS_AT_ONCE))
        if machine_code is None:
            machine_code = _CLIMB.machine_code(python_s=size * _PYTHON_S * len(jobs.row))
            if machine_code:
                jobs, run = as_arrays(jobs), as_arrays(run)
        (machine_code or tabu.climb)(jobs, run, size, enough_ns)
        num_steps -= size
    return as_lists(run)
