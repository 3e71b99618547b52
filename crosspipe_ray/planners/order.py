"""What a planner comes to: the order of ops on the ranks and of messages on shared channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crosspipe_ray.ops import Op
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Order:
    """A schedule and, where channels are shared, the order of the messages.

    Attributes:
        sends: SEND ops in the order in which channels serve them; None: by ready time.
    """

    schedule: Schedule
    sends: Sequence[Op] | None = None

    def timeline(self, problem: Problem) -> Timeline:
        """What the clock says of it."""
        return simulate(problem, self.schedule, send_order=self.sends)
