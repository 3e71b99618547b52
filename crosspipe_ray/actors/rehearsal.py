"""Rehearses a plan on real actors and links, with stages that only sleep."""

from __future__ import annotations

from collections.abc import Iterator

from crosspipe_ray.actors.cluster import cluster
from crosspipe_ray.actors.group import clock_folder, stage_group
from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.engine.links import Emulation
from crosspipe_ray.link_choice import carriers_of
from crosspipe_ray.lowering import lanes, lower
from crosspipe_ray.measured import measured_timeline
from crosspipe_ray.plan import Plan
from crosspipe_ray.timeline import Timeline


def rehearse(
    plan: Plan,
    *,
    num_steps: int,
    carrier: Carrier | None = None,
    address: str | None = None,
    region_label: str = "region",
    emulate_links: bool = True,
    timeout_s: float = 120.0,
) -> Iterator[Timeline]:
    """Runs a plan step by step.

    Args:
        plan: checked, as `read_plan` returns it.
        num_steps: how often.
        carrier: of all messages; None: what the plan names, collective where it names none.
        address: of a Ray cluster; None starts one on this machine, a node per cluster of the plan.
        region_label: node label that holds the name of a rank's cluster.
        emulate_links: inject the problem's latency and bandwidth; off on links that are real.
        timeout_s: longest wait for a message.

    Yields:
        The measured timeline of each step.

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
        for reports in group.steps(range(num_steps)):
            yield measured_timeline(report.record for report in reports)
        group.close()
