"""What the steps of a run took, from the reports of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from statistics import median

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.measured import StepReport, measured_timeline, on_one_clock
from crosspipe_ray.report.summary import StepTimes
from crosspipe_ray.timeline import Timeline

_NUM_WARMUP_STEPS = 3
_NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step, over all ranks.

    Attributes:
        start_ns: of its first op.
        loss: mean over its microbatches, summed in their order.
        norm_exchange_s: from the last op of any rank until all know the norm.
        optimizer_s: from there until all have updated their weights.
    """

    start_ns: int
    loss: float
    gradient_norm: float
    timeline: Timeline
    norm_exchange_s: float
    optimizer_s: float

    @classmethod
    def of(cls, recorded: Sequence[StepReport], clocks: Mapping[int, HostClock]) -> LoggedStep:
        """Puts the reports of all ranks together, on rank 0's clock."""
        reports = on_one_clock(recorded, clocks)
        losses = [loss for report in reports for loss in report.losses]
        end_ns = max(report.record.spans[-1].end_ns for report in reports)
        exchanged_ns = max(report.exchanged_ns for report in reports)
        updated_ns = max(report.updated_ns for report in reports)
        return cls(
            start_ns=min(report.record.spans[0].start_ns for report in reports),
            loss=fsum(losses) / len(losses),
            gradient_norm=reports[0].gradient_norm,
            timeline=measured_timeline(report.record for report in reports),
            norm_exchange_s=(exchanged_ns - end_ns) / _NS_PER_S,
            optimizer_s=(updated_ns - exchanged_ns) / _NS_PER_S,
        )


class StepLog:
    """All steps of a run, in order.

    Args:
        clocks: of the ranks whose clock is not rank 0's, as they are known before the steps.
    """

    def __init__(self, clocks: Mapping[int, HostClock]) -> None:
        self.clocks = clocks
        self.steps: list[LoggedStep] = []
        self._recorded: list[Sequence[StepReport]] = []

    def add(self, reports: Sequence[StepReport]) -> LoggedStep:
        """Takes the next step."""
        self.steps.append(LoggedStep.of(reports, self.clocks))
        if self.clocks:
            self._recorded.append(reports)
        return self.steps[-1]

    def correct(self, clocks: Mapping[int, HostClock]) -> None:
        """Lays all steps on rank 0's clock anew, when the drift of the others is known."""
        self.clocks = clocks
        if clocks:
            self.steps = [LoggedStep.of(reports, clocks) for reports in self._recorded]

    @property
    def losses(self) -> list[float]:
        """Of every step."""
        return [step.loss for step in self.steps]

    def typical(self) -> Timeline:
        """The timeline of the step whose makespan is the median."""
        by_makespan = sorted(self._warm(), key=lambda step: step.timeline.makespan_ns)
        return by_makespan[len(by_makespan) // 2].timeline

    def timelines(self) -> list[Timeline]:
        """Of all steps but the first ones, while things warm up."""
        return [step.timeline for step in self._warm()]

    def times(self) -> StepTimes:
        """Medians; a step lasts until the next one starts, so the last has no length of its own."""
        warm = self._warm()
        starts = [step.start_ns for step in warm]
        lengths = [(end - start) / _NS_PER_S for start, end in pairwise(starts)]
        makespan_s = median(step.timeline.makespan_ns for step in warm) / _NS_PER_S
        return StepTimes(
            step_s=median(lengths) if lengths else makespan_s,
            makespan_s=makespan_s,
            norm_exchange_s=median(step.norm_exchange_s for step in warm),
            optimizer_s=median(step.optimizer_s for step in warm),
            bubble_ratio=median(step.timeline.bubble_ratio for step in warm),
        )

    def _warm(self) -> list[LoggedStep]:
        return self.steps[_NUM_WARMUP_STEPS:] or self.steps
