"""How well a plan predicted its run: makespan, ops by kind, messages by link, work by rank.

The plan was made before the run, from a profile that no span of the run has entered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.ops import COMPUTE_KINDS, producers_of
from crosspipe_ray.plan import Plan
from crosspipe_ray.report.clocks import clocks_markdown
from crosspipe_ray.timeline import Timeline

Figures = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One figure, planned and measured.

    Attributes:
        group: makespan, op, message or rank.
        name: which of the group.
        planned_us: in the plan.
        measured_us: median over the steps.
    """

    group: str
    name: str
    planned_us: float
    measured_us: float

    @property
    def deviation(self) -> float | None:
        """(measured - planned) / planned: above 0 where the plan was too hopeful.

        None where nothing was planned to take time.
        """
        return self.measured_us / self.planned_us - 1 if self.planned_us else None


def predictions(
    planned: Timeline, measured: Sequence[Timeline], *, clusters: Sequence[str]
) -> list[Prediction]:
    """Compares a plan's timeline with those of its steps.

    Args:
        planned: simulated.
        measured: of one or more steps.
        clusters: cluster of each rank.

    Returns:
        The makespan first; then the mean duration of each kind of op, the mean time from the moment
        at which a message is ready to its arrival per pair of clusters, and each rank's work.
    """
    expected = _figures(planned, clusters)
    steps = [_figures(timeline, clusters) for timeline in measured]
    return [
        Prediction(group, name, value, median(step.get((group, name), 0.0) for step in steps))
        for (group, name), value in expected.items()
    ]


def predictions_markdown(rows: Sequence[Prediction]) -> str:
    """The comparison as a table."""
    lines = ["| | planned | measured | deviation |", "|---|---|---|---|"]
    lines += [
        f"| {f'{row.group} {row.name}'.strip()} | {row.planned_us / 1000:.2f} ms | "
        f"{row.measured_us / 1000:.2f} ms | "
        f"{'-' if row.deviation is None else format(row.deviation, '+.1%')} |"
        for row in rows
    ]
    return "\n".join(lines)


def rehearsal_markdown(
    plan: Plan, measured: Sequence[Timeline], clocks: Mapping[int, HostClock]
) -> str:
    """What comes of a rehearsal: the comparison, and what is known of other hosts' clocks."""
    clusters = [rank.cluster for rank in plan.problem.ranks]
    table = predictions_markdown(predictions(plan.timeline, measured, clusters=clusters))
    return f"{table}\n\n{clocks_markdown(clocks)}" if clocks else table


def _figures(timeline: Timeline, clusters: Sequence[str]) -> Figures:
    figures: Figures = {("makespan", ""): timeline.makespan_ns / 1000}
    for kind in COMPUTE_KINDS:
        durations = [
            end - start for spans in timeline.ranks for op, start, end in spans if op.kind is kind
        ]
        if durations:
            figures["op", kind.name] = fmean(durations) / 1000
    for link, delays in _delays(timeline, clusters).items():
        figures["message", link] = fmean(delays) / 1000
    for rank, busy_ns in enumerate(timeline.busy_ns):
        figures["rank", f"{rank} busy"] = busy_ns / 1000
    return figures


def _delays(timeline: Timeline, clusters: Sequence[str]) -> dict[str, list[int]]:
    """Time from the end of the op that makes a message to its arrival, by pair of clusters."""
    ends = {span.op: span.end_ns for spans in timeline.ranks for span in spans}
    delays: dict[str, list[int]] = {}
    for message in timeline.sends:
        src, dst = clusters[message.src], clusters[message.dst]
        ready_ns = next(ends[op] for op in producers_of(message.op) if op in ends)
        if src != dst:
            delays.setdefault(f"{src} -> {dst}", []).append(message.arrive_ns - ready_ns)
    return delays
