"""Ranks in the order of their stages, so that how they are numbered changes no plan.

Searches go through ranks by number, and where two are equal the first one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from crosspipe_ray.columns import Parts
from crosspipe_ray.planners.order import Order
from crosspipe_ray.problem import End, Problem
from crosspipe_ray.schedule import Schedule


def by_stages(problem: Problem) -> list[int]:
    """The ranks: that of the first stage, and so on; last those without any."""
    used = list(dict.fromkeys(problem.rank_of_stage))
    return used + [rank for rank in range(len(problem.ranks)) if rank not in set(used)]


def renumbered(problem: Problem, ranks: Sequence[int]) -> Problem:
    """The problem whose rank n is rank ``ranks[n]`` of the given one."""
    number = {rank: n for n, rank in enumerate(ranks)}

    def end(given: End) -> End:
        return number[given] if isinstance(given, int) else given

    fields = {name: getattr(problem, name) for name in Problem.model_fields}
    fields |= {
        "ranks": tuple(problem.ranks[rank] for rank in ranks),
        "stages": tuple(
            stage.model_copy(update={"rank": number[stage.rank]}) for stage in problem.stages
        ),
        "links": tuple(
            link.model_copy(update={"src": end(link.src), "dst": end(link.dst)})
            for link in problem.links
        ),
    }
    return Problem.model_validate(fields)


def reordered(order: Order, ranks: Sequence[int]) -> Order:
    """The order whose rank n does what rank ``ranks[n]`` does in the given one."""
    first = order.schedule.ranks.first
    taken = np.concatenate([np.arange(first[rank], first[rank + 1]) for rank in ranks])
    parts = order.schedule.parts
    schedule = Schedule.of_codes(
        order.schedule.ranks.flat.codes[taken],
        np.diff(first)[list(ranks)].tolist(),
        parts=None if parts is None else Parts(*(column[taken] for column in parts.columns)),
    )
    return replace(order, schedule=schedule)
