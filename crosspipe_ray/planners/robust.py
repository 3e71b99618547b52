"""The plan that does best when links jitter: the least quantile of the makespan.

Each sampled step draws one latency per link from its ``latency_samples_us``, independently, and all
plans meet the same draws. Orders found for the latencies as stated compete with orders found for
slow links: every link at the quantile of its own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.errors import ProblemError
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.comparison import highest_bounds_ns
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.places import Allowance, limits_messages
from crosspipe_ray.planners.portfolio import AUTO, Attempt, Budget, plan, verdict, with_verdict
from crosspipe_ray.planners.sampling import Latencies, makespans_ns
from crosspipe_ray.problem import Link, Problem
from crosspipe_ray.simulate import simulate

DEFAULT_NUM_SAMPLES = 1000
_STATED_SHARE = 0.5  # of the time: for the latencies as stated


def robust_plan(
    problem: Problem,
    *,
    quantile: float,
    method: str = AUTO,
    budget: Budget | None = None,
    patterns: Sequence[Pattern] = tuple(Pattern),
    num_samples: int = DEFAULT_NUM_SAMPLES,
    on_attempt: Callable[[Attempt], None] = lambda _: None,
) -> Plan:
    """Plans for links whose latency varies from step to step.

    Args:
        problem: of which a link gives ``latency_samples_us``.
        quantile: of the makespan over the sampled steps, in 0..1; the least one wins.
        method: as for `portfolio.plan`.
        budget: of all planning; sampling comes on top. The seed draws the latencies too.
        patterns: placements to try for a problem with layers.
        num_samples: sampled steps.
        on_attempt: told of each attempt as it is done.

    Returns:
        The best of all attempts, with ``p50_ns`` and ``p95_ns``. Its timeline, makespan and bound
        are those of the latencies as stated.

    Raises:
        ProblemError: no link gives samples; or what `portfolio.plan` raises.
        InfeasibleError: memory is too small.
    """
    budget = budget or Budget()
    allowance = Allowance(budget)
    if not any(link.latency_samples_us for link in problem.links):
        raise ProblemError("--quantile: no link of the problem gives latency_samples_us")
    latencies = draw(problem, num_samples=num_samples, seed=budget.seed)
    attempts: list[Attempt] = []

    def note(attempt: Attempt) -> None:
        on_attempt(attempt)
        attempts.append(attempt)

    has_slow = not limits_messages(problem)  # how many messages wait depends on the latencies
    stated = allowance.share(_STATED_SHARE if has_slow else 1.0)
    plan(problem, method=method, budget=stated, patterns=patterns, on_attempt=note)
    if has_slow:
        slow, bounds = allowance.share(1.0), highest_bounds_ns(attempts)
        for attempt in _for_slow_links(problem, quantile, method, slow, patterns):
            note(_on_links(attempt, problem.links, bounds))
    status = verdict(attempts, allowance)
    plans = [each.plan for each in attempts if each.plan]
    best = _best(plans, latencies, quantile)
    beside = [made for made in plans if made.problem == best.problem]
    return replace(with_verdict(best, beside, status), wall_s=allowance.elapsed_s)


def quantile_ns(made: Plan, *, quantile: float, seed: int = 0) -> int:
    """That quantile of a plan's makespan over the steps that `robust_plan` samples."""
    latencies = draw(made.problem, num_samples=DEFAULT_NUM_SAMPLES, seed=seed)
    return int(_quantile(makespans_ns(made, latencies), quantile))


def draw(problem: Problem, *, num_samples: int, seed: int) -> Latencies:
    """Latencies of the links in sampled steps, in nanoseconds, by the link's two ends."""
    rng = np.random.default_rng(seed)
    return {
        (link.src, link.dst): np.rint(
            1000 * rng.choice(np.array(link.latency_samples_us or [link.latency_us]), num_samples)
        ).astype(np.int64)
        for link in problem.links
    }


def _for_slow_links(
    problem: Problem,
    quantile: float,
    method: str,
    budget: Budget,
    patterns: Sequence[Pattern],
) -> list[Attempt]:
    """Plans for links at the quantile."""
    attempts: list[Attempt] = []
    links = [_at_quantile(link, quantile) for link in problem.links]
    plan(
        problem.with_links(links),
        method=method,
        budget=budget,
        patterns=patterns,
        on_attempt=attempts.append,
    )
    return attempts


def _at_quantile(link: Link, quantile: float) -> Link:
    if not link.latency_samples_us:
        return link
    return link.model_copy(
        update={"latency_us": _quantile(np.array(link.latency_samples_us), quantile)}
    )


def _on_links(attempt: Attempt, links: Sequence[Link], bounds: dict[str, int]) -> Attempt:
    """The same order on the clock of other latencies; a new bound is noted in ``bounds``."""
    placement, made = f"{attempt.placement}, slow", attempt.plan
    if made is None:
        return replace(attempt, placement=placement)
    problem = made.problem.with_links(links)
    digest = problem.sha256
    if digest not in bounds:
        bounds[digest] = bounds_of(problem).makespan_ns
    timeline = simulate(problem, made.schedule, send_order=made.send_order)
    again = replace(made, problem=problem, timeline=timeline, status="gap")
    return replace(attempt, placement=placement, plan=again.with_bound(bounds[digest]))


def _best(plans: Sequence[Plan], latencies: Latencies, quantile: float) -> Plan:
    """The least quantile; at equal ones the least makespan for the latencies as stated."""
    samples = [makespans_ns(made, latencies) for made in plans]
    scores = [
        (int(_quantile(sampled, quantile)), made.timeline.makespan_ns)
        for sampled, made in zip(samples, plans, strict=True)
    ]
    index = min(range(len(plans)), key=scores.__getitem__)
    return replace(
        plans[index],
        p50_ns=int(_quantile(samples[index], 0.5)),
        p95_ns=int(_quantile(samples[index], 0.95)),
    )


def _quantile(values: NDArray[np.int64] | NDArray[np.float64], quantile: float) -> float:
    """One of the values, so that times stay whole."""
    return float(np.quantile(values, quantile, method="inverted_cdf"))
