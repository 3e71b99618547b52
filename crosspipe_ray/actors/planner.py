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
        config: of the run.
        link_profile: measured links, in place of the configured ones.
    """

    def __init__(self, config: Config, link_profile: LinkProfile | None = None) -> None:
        os.nice(_NICENESS)
        self._config = config
        self._link_profile = link_profile
        self._problem: Problem | None = None

    @ray.method
    def learn(self, profiles: Sequence[Sequence[LayerCosts]]) -> RunProfile:
        """Takes the costs that the ranks measured, one list per rank."""
        profile = profile_of(self._config, profiles, self._link_profile)
        self._problem = profile.problem
        return profile

    @ray.method
    def start_from(self, profile: RunProfile) -> RunProfile:
        """Takes what an earlier run has left, with the links and limits of this one."""
        self._problem = problem_again(self._config, profile, self._link_profile)
        return profile.model_copy(update={"problem": self._problem})

    @ray.method
    def plan(self) -> tuple[Plan, list[Attempt]]:
        """The best plan by the configured method, and all that was tried on the way."""
        if self._problem is None:
            raise RunError("the planner has no costs yet")
        attempts: list[Attempt] = []
        return plan_of(self._config, self._problem, on_attempt=attempts.append), attempts


PlannerActor = ray.remote(num_cpus=0)(Planner)
