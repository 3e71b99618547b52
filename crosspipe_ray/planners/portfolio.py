"""From a problem to a plan: one method by its name, or `auto`, the best of all that fit.

With layers to place, `auto` first gives each placement a short look by every method, then the best
ones a look with less work on the first ranks, then the best of all a longer one; the rest of the
time is for improving the best and for the solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from crosspipe_ray.compiled import check_switch
from crosspipe_ray.errors import InfeasibleError, ProblemError
from crosspipe_ray.plan import Plan
from crosspipe_ray.plan_format import Status
from crosspipe_ray.planners.candidates import candidates
from crosspipe_ray.planners.methods import METHODS, Budget, Method
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.places import Allowance, Attempt, Place, favourites, slanted
from crosspipe_ray.problem import Problem

__all__ = [
    "AUTO",
    "METHODS",
    "Attempt",
    "Budget",
    "Method",
    "check_method",
    "needed_pattern",
    "plan",
    "verdict",
    "with_verdict",
]

AUTO = "auto"
_LOOK_ITERATIONS = 12
_LOOK_SHARE = 0.3  # of the time that is left: for a short look at every placement
_NUM_FAVOURITES, _NUM_SLANTED = 3, 5
_EQUAL_SHARE = 0.6  # of the time of a method that is asked for: for stages of equal work
_LARGE_SHARE = 0.6  # of the time that is left: for greedy, then improve, if the solver is no use
_GREEDY_SHARE, _GREEDY_IF_EASY = 0.2, 0.1  # of the time that is left, for the only placement
_IMPROVE_SHARE, _IMPROVE_IF_EASY = 0.5, 0.35  # of what is left then; the rest is the solver's
_MOST_EASY_OPS = 600  # below, the solver soon ends with a proof
_MOST_SOLVED_OPS = 10_000  # above, the solver finds nothing in any time that one would give it
_MOST_IMPROVED_OPS = 20_000  # above, improve is still setting out when greedy has long arrived
_MOST_FORMULA_OPS = 1_000_000  # above, each plan that is looked at takes seconds
_SEEN_SHARE = 0.5  # of the time: for formulas, and for the bounds and the least that a look takes
_SEEN_S = 1e-6  # for an op of a placement: all that
_SETTING_OUT_S = 6e-6  # for an op: until improve makes its first move
_RULE_S = 1e-5  # for an op of a method that goes by rules, in Python


def plan(
    problem: Problem,
    *,
    method: str = AUTO,
    budget: Budget | None = None,
    patterns: Sequence[Pattern] = tuple(Pattern),
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> Plan:
    """Plans a problem.

    Args:
        problem: with stages, or with layers to be placed.
        method: a name of METHODS, or ``auto``: every method that fits is tried, the shortest
            makespan wins.
        budget: time, iterations and seed.
        patterns: placements to try for a problem with layers.
        on_attempt: told of each method and placement as it is done.

    Raises:
        InputError: no such method, or the problem has not the placement that the method needs, or
            none of ``patterns`` does; or the variable that decides about compilation says neither
            always nor never.
        InfeasibleError: memory is too small.
    """
    check_method(method)
    check_switch()
    allowance = Allowance(budget or Budget())
    usable = [each for each in patterns if needed_pattern(method) in (None, each)]
    places = [Place(problem, each) for each in candidates(problem, usable)]
    if not places:
        raise _no_placement(method, usable)
    attempts = []
    search = (
        _try_all(places, allowance)
        if method == AUTO
        else _try_one(places, METHODS[method], allowance)
    )
    for attempt in search:
        on_attempt(attempt)
        attempts.append(attempt)
    return _best(attempts, allowance)


def check_method(method: str) -> None:
    """Refuses a name that is no method.

    Raises:
        ProblemError: lists those that there are.
    """
    if method != AUTO and method not in METHODS:
        known = ", ".join([*METHODS, AUTO])
        raise ProblemError(f"method '{method}': no such method; there are {known}")


def needed_pattern(method: str) -> Pattern | None:
    """The placement that a method needs; None: any."""
    return None if method == AUTO else METHODS[method].pattern


def verdict(attempts: Sequence[Attempt], allowance: Allowance) -> Status:
    """Why the search is over, where it has proven nothing.

    The clock ended it if nothing is left of all the time. A share that a search has used up says
    nothing of that: others may have ended early, with nothing left to try.
    """
    has_searched = any(METHODS[attempt.method].is_search for attempt in attempts)
    return "time_limit" if has_searched and allowance.is_spent else "gap"


def with_verdict(best: Plan, beside: Sequence[Plan], status: Status) -> Plan:
    """A plan with the highest bound of its placement, which may prove it, else with the verdict.

    Args:
        best: the plan.
        beside: all plans on its placement, itself among them.
        status: of the whole search.
    """
    best = replace(best, status=status)
    return best.with_bound(max(made.lower_bound_ns for made in beside))


def _no_placement(method: str, usable: Sequence[Pattern]) -> ProblemError:
    """Says what the method needs."""
    if not usable:
        needed = needed_pattern(method)
        return ProblemError(f"patterns: {method} needs {needed.value if needed else 'one'}")
    meanings = "; ".join(f"{each.value}: {each.meaning}" for each in usable)
    return ProblemError(
        f"num_stages_per_rank: {method} has no placement with that many stages on a rank "
        f"({meanings})"
    )


def _try_one(places: Sequence[Place], method: Method, allowance: Allowance) -> Iterator[Attempt]:
    """The method that is asked for; it is tried where it does not fit too, to say why."""
    can_slant = method.is_search and any(place.candidate.slanted() for place in places)
    yield from _each(places, method, allowance, _EQUAL_SHARE if can_slant else 1.0)
    if can_slant:
        yield from _each(slanted(favourites(places, 1)), method, allowance, 1.0)


def _each(
    places: Sequence[Place],
    method: Method,
    allowance: Allowance,
    share: float,
    *,
    iterations: float = math.inf,
) -> Iterator[Attempt]:
    """One method on each placement, for the same part of a share of the time that is left.

    A search tries the first in any case, and goes on until there is a plan or while there is time.
    """
    for number, place in enumerate(places):
        has_plan = any(each.best for each in places)
        if number and has_plan and method.is_search and allowance.is_spent:
            return
        part = share / (len(places) - share * number)
        yield place.attempt(method, allowance.share(part, iterations=iterations))


def _try_all(places: list[Place], allowance: Allowance) -> Iterator[Attempt]:
    """Every method on every placement for a short time, then the searches where it is promising."""
    if len(places) == 1 and places[0].num_ops > _MOST_SOLVED_OPS:
        yield from _try_large(places[0], allowance)
        return
    places, others = _split_by_time(places, allowance.budget.time_limit_s)
    rules_s = _RULE_S * sum(place.num_ops for place in places)
    has_time = rules_s < _LOOK_SHARE * allowance.budget.time_limit_s
    for place in places:
        yield from _try_fixed(place, allowance, wanted=lambda each: has_time or _is_formula(each))
    if places[0].candidate.pattern is None:
        share = _GREEDY_IF_EASY if _is_for_solver(places[0]) else _GREEDY_SHARE
        yield from _try_search("greedy", places[0], allowance, share)
    else:
        yield from _look_around(places, allowance)
    if not favourites(places, 1):  # memory may suffice for finer stages
        yield from _look_around(others, allowance)
    yield from _try_favourites([*places, *others], allowance)


def _split_by_time(places: list[Place], time_limit_s: float) -> tuple[list[Place], list[Place]]:
    """The placements that there is time to look at, those of the fewest ops always; the others."""
    most_ops = max(_SEEN_SHARE * time_limit_s / _SEEN_S, _MOST_SOLVED_OPS)
    sizes = {place.num_ops for place in places}

    def num_ops_up_to(size: int) -> int:
        return sum(place.num_ops for place in places if place.num_ops <= size)

    finest = max((size for size in sizes if num_ops_up_to(size) <= most_ops), default=min(sizes))
    return (
        [place for place in places if place.num_ops <= finest],
        [place for place in places if place.num_ops > finest],
    )


def _try_favourites(places: Sequence[Place], allowance: Allowance) -> Iterator[Attempt]:
    """The best placement; then, while time is left, others that may have a shorter plan yet."""
    for place in favourites(places, _NUM_FAVOURITES):
        [best] = favourites(places, 1)
        if place is best or (place.may_beat(best, allowance.budget) and not allowance.is_spent):
            yield from _try_longer(place, allowance)


def _try_longer(place: Place, allowance: Allowance) -> Iterator[Attempt]:
    """What improves and proves the best order known."""
    can_solve = place.num_ops <= _MOST_SOLVED_OPS
    makes_moves_itself = can_solve and place.is_bound_by_channels  # the solver
    sets_out_s = _SETTING_OUT_S * place.num_ops
    has_time = place.num_ops <= _MOST_IMPROVED_OPS or sets_out_s < allowance.left_s
    if has_time and not makes_moves_itself:
        share = _IMPROVE_IF_EASY if _is_for_solver(place) else _IMPROVE_SHARE
        yield from _try_search("improve", place, allowance, share if can_solve else 1.0)
    if can_solve:
        yield from _try_search("optimal", place, allowance, 1.0)


def _try_search(name: str, place: Place, allowance: Allowance, share: float) -> Iterator[Attempt]:
    """A search, in a share of the time that is left, unless what was found is good enough."""
    if not place.is_done_for(allowance.budget):
        yield place.attempt(METHODS[name], allowance.share(share))


def _is_for_solver(place: Place) -> bool:
    """Whether the solver gains more in the same time than greedy and improve."""
    return place.num_ops <= _MOST_EASY_OPS or place.is_bound_by_channels


def _try_fixed(
    place: Place, allowance: Allowance, *, wanted: Callable[[Method], bool] = lambda _: True
) -> Iterator[Attempt]:
    """The methods that do not search."""
    for method in METHODS.values():
        if not method.is_search and place.fits(method) and wanted(method):
            yield place.attempt(method, allowance.share(1.0))


def _try_large(place: Place, allowance: Allowance) -> Iterator[Attempt]:
    """Formulas take no time to speak of, and greedy is often optimal at once; rules take long."""
    has_time_for_all = place.num_ops <= _MOST_FORMULA_OPS
    if has_time_for_all:
        yield from _try_fixed(place, allowance, wanted=_is_formula)
    can_improve = place.num_ops <= _MOST_IMPROVED_OPS
    yield from _try_search("greedy", place, allowance, _LARGE_SHARE if can_improve else 1.0)
    if can_improve:
        yield from _try_search("improve", place, allowance, 1.0)
    if has_time_for_all and not place.is_done_for(allowance.budget):
        rules_s = _RULE_S * place.num_ops
        if place.best is None or rules_s < allowance.left_s:
            yield from _try_fixed(place, allowance, wanted=lambda method: not _is_formula(method))


def _is_formula(method: Method) -> bool:
    """Whether a method writes its order down; those without a placement of their own find it."""
    return method.pattern is not None


def _look_around(places: list[Place], allowance: Allowance) -> Iterator[Attempt]:
    """A short look at every placement, and a longer one at the favourites.

    Those with slants join the places.
    """
    yield from _look(places, allowance, _LOOK_SHARE)
    if not allowance.is_spent:
        finer = slanted(favourites(places, _NUM_SLANTED))
        yield from _look(finer, allowance, _LOOK_SHARE)
        places += finer
    best = favourites(places, _NUM_FAVOURITES)
    for number, place in enumerate(best):
        if not allowance.is_spent:
            yield from _try_search("greedy", place, allowance, 1 / (len(best) - number + 2))


def _look(places: Sequence[Place], allowance: Allowance, share: float) -> Iterator[Attempt]:
    """A few passes of greedy on each, in a share of the time that is left."""
    yield from _each(places, METHODS["greedy"], allowance, share, iterations=_LOOK_ITERATIONS)


def _best(attempts: Sequence[Attempt], allowance: Allowance) -> Plan:
    """The shortest plan; without any, the least demanding reason."""
    plans = [attempt.plan for attempt in attempts if attempt.plan]
    if plans:
        best = min(plans, key=lambda made: made.timeline.makespan_ns)
        beside = [made for made in plans if made.problem is best.problem]
        best = with_verdict(best, beside, verdict(attempts, allowance))
        return replace(best, wall_s=allowance.elapsed_s)
    reasons = [attempt.error for attempt in attempts if attempt.error]
    lacking = [error for error in reasons if isinstance(error, InfeasibleError)]
    if lacking:  # of equal ones the last, as greedy asks for the least memory
        raise min(reversed(lacking), key=lambda error: error.missing_bytes)
    raise reasons[0]  # of the placement with the fewest stages
