"""A seeded search over passes of list scheduling: keeps the best order, stops at the bound.

An attempt is made of a bias and of tails. Its neighbours have another bias, or tails learned from
it: gone through backwards in time, an order shows how long the rest of the step really takes from
each op, where the bound only knows the least (forward-backward improvement, Li and Willis 1992).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from crosspipe_ray.costs import check_memory_suffices
from crosspipe_ray.planners.bounds.makespan import Bounds
from crosspipe_ray.planners.bounds.relaxation import Times
from crosspipe_ray.planners.greedy.kernel import State
from crosspipe_ray.planners.greedy.passes import Bias, ListScheduler, Triple
from crosspipe_ray.planners.order import Order
from crosspipe_ray.planners.progress import OnProgress, unheard
from crosspipe_ray.problem import Problem

DEFAULT_ITERATIONS = 200
_PATIENCES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
_GOALS = (0.0, 1.0, 1.0, 1.001, 1.003, 1.01, 1.02, 1.03)
_STARTS = tuple(
    Bias(patience=(patience,) * 3, goal=goal)
    for patience, goal in ((0.5, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0))
)
_STEADY_STARTS = tuple(
    Bias(patience=each)
    for each in ((1.0, 0.5, 0.65), (1.0, 0.5, 1.0), (1.0, 0.0, 0.65), (0.75, 0.5, 1.0))
)
_SLACK = 0.1  # of the best attempt's distance from the bound: how much longer the next may be
_MOST_FRUITLESS = 300  # steps without a better attempt, after which the search starts elsewhere


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An order, and by what it was made."""

    makespan_ns: int
    state: State
    bias: Bias
    tails: Times


def greedy_order(
    problem: Problem,
    *,
    time_limit_s: float = 1.0,
    iterations: float = DEFAULT_ITERATIONS,
    seed: int = 0,
    gap: float = 0.0,
    bounds: Bounds | None = None,
    on_progress: OnProgress = unheard,
) -> Order:
    """The best order that the search finds.

    Args:
        problem: with stages, any placement.
        time_limit_s: no new attempt starts after it; one attempt is always made.
        iterations: number of attempts; with a generous time limit the result depends on it and the
            seed alone.
        seed: of the search.
        gap: an order within this share of the bound is good enough.
        bounds: of the problem, if they are at hand.
        on_progress: told when an order is better than all before.

    Raises:
        InfeasibleError: a rank has less memory than one microbatch needs.
    """
    check_memory_suffices(problem)
    deadline = time.monotonic() + time_limit_s
    scheduler = ListScheduler(problem, bounds=bounds)
    enough_ns = scheduler.bounds.makespan_ns * (1 + gap)
    search = _Search(scheduler, random.Random(seed))
    on_progress(search.best_ns, scheduler.bounds.makespan_ns)
    num_tried = 1
    while num_tried < iterations and search.best_ns > enough_ns and time.monotonic() <= deadline:
        num_tried += 1
        if search.step():
            on_progress(search.best_ns, scheduler.bounds.makespan_ns)
    return scheduler.order(search.best.state)


class _Search:
    """The best attempt so far, the last, and the current one, whose neighbours are tried."""

    def __init__(self, scheduler: ListScheduler, rng: random.Random) -> None:
        self._scheduler = scheduler
        self._rng = rng
        self._starts = [(bias, scheduler.tails) for bias in _STARTS]
        if scheduler.steady_tails is not None:
            self._starts[2:2] = [(bias, scheduler.steady_tails) for bias in _STEADY_STARTS]
        self._num_steps = self._num_fruitless = 0
        self.best = self._current = self._last = self._tried(*self._starts[0])

    @property
    def best_ns(self) -> int:
        """Makespan of the best attempt."""
        return self.best.makespan_ns

    def step(self) -> bool:
        """Tries one more, which becomes the current one if it is not much longer.

        Returns:
            Whether it is the best so far.
        """
        self._num_steps += 1
        attempt = self._last = self._tried(*self._next())
        distance_ns = self.best_ns - self._scheduler.bounds.makespan_ns
        slack_ns = _SLACK * distance_ns * self._rng.expovariate(1.0)
        if self._num_fruitless > _MOST_FRUITLESS:
            self._current, self._num_fruitless = attempt, 0
        elif attempt.makespan_ns <= self._current.makespan_ns + slack_ns:
            self._current = attempt
        self._num_fruitless += 1
        is_best = attempt.makespan_ns < self.best_ns
        if is_best:
            self.best, self._num_fruitless = attempt, 0
        return is_best

    def _tried(self, bias: Bias, tails: Times) -> _Attempt:
        makespan, state = self._scheduler.forward(tails, bias)
        return _Attempt(makespan, state, bias, tails)

    def _next(self) -> tuple[Bias, Times]:
        rng, current = self._rng, self._current
        if self._num_steps < 2 * len(self._starts):
            return self._opening()
        if self._num_fruitless > _MOST_FRUITLESS:
            bias, tails = rng.choice(self._starts)
            return _neighbour(bias, self._scheduler.num_stages, rng), tails
        if rng.random() < 0.5:
            bias = current.bias if rng.random() < 0.5 else rng.choice(_STARTS)
            return bias, self._learned(current)
        tails = current.tails if rng.random() < 0.9 else self._scheduler.tails
        return _neighbour(current.bias, self._scheduler.num_stages, rng), tails

    def _opening(self) -> tuple[Bias, Times]:
        """Every start, and each at once again with tails learned from it."""
        start, is_again = divmod(self._num_steps, 2)
        if not is_again:
            return self._starts[start]
        bias, state = self._last.bias, self._last.state
        return bias, self._scheduler.learned_tails(
            state, noise=0.0, patience=0.5, goal=1.0, rng=self._rng
        )

    def _learned(self, origin: _Attempt) -> Times:
        rng = self._rng
        return self._scheduler.learned_tails(
            origin.state,
            noise=rng.choice((0.0, 0.1, 0.25, 0.5, 1.0)),
            patience=rng.choice((0.5, 1.0)),
            goal=rng.choice((0.0, 1.0)),
            rng=rng,
        )


def _neighbour(bias: Bias, num_stages: int, rng: random.Random) -> Bias:
    """A bias with one to three of its parts drawn anew or moved."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        bias = _moved(bias, num_stages, rng)
    return bias


def _moved(bias: Bias, num_stages: int, rng: random.Random) -> Bias:
    part = rng.random()
    if part < 0.25:
        patience = rng.choice(_PATIENCES)
        kind = rng.randrange(4)
        drawn = (patience,) * 3 if kind == 3 else _with(bias.patience, kind, patience)
        return replace(bias, patience=drawn)
    if part < 0.4:
        return replace(bias, goal=rng.choice(_GOALS))
    kind = rng.randrange(3)
    if part < 0.6:
        return replace(bias, offset=_with(bias.offset, kind, bias.offset[kind] + rng.gauss(0, 2)))
    if part < 0.8:
        return replace(bias, slope=_with(bias.slope, kind, bias.slope[kind] + rng.gauss(0, 3)))
    if part < 0.9:
        caps = (None, None, num_stages / 2, float(num_stages), rng.uniform(1, 2 * num_stages))
        return replace(bias, cap=rng.choice(caps))
    return replace(bias, cap_slope=rng.choice((0.0, 1.0, 2.0, rng.uniform(0, 3))))


def _with(values: Triple, kind: int, value: float) -> Triple:
    first, second, third = (value if i == kind else old for i, old in enumerate(values))
    return first, second, third
