"""Rehearses a plan on real actors and links, with stages that only sleep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crosspipe_ray.actors.cluster import cluster
from crosspipe_ray.actors.group import clock_folder, stage_group
from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.engine.links import Emulation
from crosspipe_ray.links.choice import carriers_of
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import step_timeline
from crosspipe_ray.plan import Plan
from crosspipe_ray.program import lanes
from crosspipe_ray.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of it.

    Attributes:
        timelines: of each step, on rank 0's clock.
        clocks: of the ranks that have another one.
    """

    timelines: tuple[Timeline, ...]
    clocks: Mapping[int, HostClock]


def rehearse(
    plan: Plan,
    *,
    num_steps: int,
    carrier: Carrier | None = None,
    address: str | None = None,
    region_label: str = "region",
    emulate_links: bool = True,
    timeout_s: float = 120.0,
    on_step: Callable[[Timeline], None] = lambda _: None,
) -> Rehearsal:
    """Runs a plan step by step.

    Args:
        plan: checked, as `read_plan` returns it.
        num_steps: how often.
        carrier: of all messages; None: what the plan names, collective where it names none.
        address: of a Ray cluster; None starts one on this machine, a node per cluster of the plan.
        region_label: node label that holds the name of a rank's cluster.
        emulate_links: inject the problem's latency and bandwidth; off on links that are real.
        timeout_s: longest wait for a message.
        on_step: is told of each step when it is over, without the drift of other hosts' clocks,
            which is known at the end only.

    Raises:
        ClusterError: no cluster, or no node for a rank.
        RunError: a rank failed.
    """
    regions = [rank.cluster for rank in plan.problem.ranks]
    programs = lower(plan.problem, plan.timeline)
    with (
        cluster(regions, label=region_label, address=address),
        clock_folder() as clock_dir,
        stage_group(regions, label=region_label, timeout_s=timeout_s) as group,
    ):
        group.connect(
            uniform(len(regions), carrier) if carrier else carriers_of(plan.problem),
            lanes(programs),
            emulation=Emulation(plan.problem, clock_dir) if emulate_links else None,
        )
        group.rehearse(plan.problem, programs)
        clocks, steps = group.look_at_clocks(), []
        for reports in group.steps(range(num_steps)):
            steps.append(reports)
            on_step(step_timeline(reports, clocks))
        clocks = group.look_at_clocks()
        group.close()
    return Rehearsal(tuple(step_timeline(reports, clocks) for reports in steps), clocks)
