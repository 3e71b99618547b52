"""The actor that owns what was measured, and turns it into plans, while the ranks go on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from crosspipe_ray.config import Config
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.planning import plan_of, problem_again, profile_of
from crosspipe_ray.errors import RunError
from crosspipe_ray.links.profile import LinkProfile
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.problem import Problem
from crosspipe_ray.run_profile import RunProfile

_NICENESS = 10


class Planner:
    """Holds a run's problem; plans it on demand, behind whatever else its host computes.

    Args:
        link_profile: measured links, in place of the configured ones.
    """

    def __init__(self, link_profile: LinkProfile | None = None) -> None:
        os.nice(_NICENESS)
        self._link_profile = link_profile
        self._run: tuple[Config, Problem] | None = None

    @ray.method
    def learn(self, config: Config, profiles: Sequence[Sequence[LayerCosts]]) -> RunProfile:
        """Takes a run, and the costs that its ranks measured, one list per rank."""
        profile = profile_of(config, profiles, self._link_profile)
        self._run = config, profile.problem
        return profile

    @ray.method
    def start_from(self, config: Config, profile: RunProfile) -> RunProfile:
        """Takes a run, and what an earlier one has left, with the links and limits of this one."""
        problem = problem_again(config, profile, self._link_profile)
        self._run = config, problem
        return profile.model_copy(update={"problem": problem})

    @ray.method
    def plan(self) -> tuple[Plan, list[Attempt]]:
        """The best plan by the configured method, and all that was tried on the way."""
        if self._run is None:
            raise RunError("the planner has no costs yet")
        attempts: list[Attempt] = []
        return plan_of(*self._run, on_attempt=attempts.append), attempts


PlannerActor = ray.remote(num_cpus=0)(Planner)
