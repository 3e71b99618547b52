"""What a run comes to: the figures at its end, on the console and in ``summary.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.links.choice import named_carriers
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.report.clocks import clocks_markdown
from crosspipe_ray.report.codec_savings import codecs_line
from crosspipe_ray.report.console import rounded_up
from crosspipe_ray.report.prediction import Prediction, predictions_markdown
from crosspipe_ray.run_profile import NEXT_PROFILE_NAME, RunProfile

_NEXT_PROFILE = (
    f" `{NEXT_PROFILE_NAME}` has what the run measured: `crosspipe train --profile` plans by it."
)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Medians over the steps of a run, in seconds; the first steps, while things warm up, left out.

    Attributes:
        step_s: from the start of a step to the start of the next.
        makespan_s: from the first op to the last.
        norm_exchange_s: from the last op of any rank until all know the gradient's norm.
        optimizer_s: from there until all have updated their weights.
        bubble_ratio: measured.
    """

    step_s: float
    makespan_s: float
    norm_exchange_s: float
    optimizer_s: float
    bubble_ratio: float

    @property
    def control_s(self) -> float:
        """What is left of the step: calls, data, ranks that start late.

        Below 0 where the first ranks start the next step while the last ones still exchange norms.
        """
        return self.step_s - self.makespan_s - self.norm_exchange_s - self.optimizer_s


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished training run.

    Attributes:
        losses: training loss of every step, nats per token.
        held_out: loss before and after; None where nothing was evaluated.
        unigram_entropy: of the training tokens: what a model that only knows frequencies can reach.
        plan: that was run.
        attempts: everything that the planner tried.
        predictions: planned against measured.
        one_f_one_b_ns: simulated makespan of 1F1B on the same costs and links; None: does not fit.
        notes: what the user should know besides.
        clocks: of the ranks whose clock is not rank 0's.
        profile: that the plan was made from; None: the plan was given.
    """

    losses: Sequence[float]
    held_out: tuple[float, float] | None
    unigram_entropy: float
    plan: Plan
    attempts: Sequence[Attempt]
    times: StepTimes
    one_f_one_b_ns: int | None
    tokens_per_s: float
    predictions: Sequence[Prediction]
    notes: Sequence[str] = ()
    clocks: Mapping[int, HostClock] = field(default_factory=dict)
    profile: RunProfile | None = None


def headline(summary: RunSummary) -> list[tuple[str, str]]:
    """The figures that matter, as (name, value)."""
    times, plan = summary.times, summary.plan
    planned_s = plan.timeline.makespan_ns / 1e9
    first, last = summary.losses[0], summary.losses[-1]
    measured, difference = _ms(times.makespan_s), times.makespan_s / planned_s - 1
    parts = (
        f"makespan {measured}",
        f"norm exchange {_ms(times.norm_exchange_s)}",
        f"optimizer {_ms(times.optimizer_s)}",
        f"control {_ms(times.control_s)}"
        if times.control_s >= 0
        else f"(overlap with the next step {_ms(times.control_s)})",
    )
    planned_bubble = plan.timeline.bubble_ratio
    rows = {
        "training loss": f"{first:.3f} -> {last:.3f} nats per token",
        "held-out loss": _held_out(summary),
        "profile": _profile(summary.profile) if summary.profile else "",
        "plan": f"{plan.method} on {len(plan.problem.stages)} stages, {_quality(plan)}",
        "makespan": f"planned {_ms(planned_s)}, measured {measured} ({difference:+.1%})",
        "bubble": f"planned {planned_bubble:.1%}, measured {times.bubble_ratio:.1%}",
        "transports": _transports(plan),
        "step": f"{_ms(times.step_s)} = {' + '.join(parts)}",
        "throughput": f"{summary.tokens_per_s:,.0f} tokens/s",
        "1F1B would take": _one_f_one_b(summary, planned_s),
        "codecs": codecs_line(plan),
    }
    return [(name, value) for name, value in rows.items() if value]


def _transports(plan: Plan) -> str:
    """Of the links that name one."""
    named = named_carriers(plan.problem)
    return ", ".join(f"{link} {carrier}" for link, carrier in named.items())


def _held_out(summary: RunSummary) -> str:
    if summary.held_out is None:
        return ""
    before, after = summary.held_out
    entropy = summary.unigram_entropy
    where = "below" if after <= entropy else "above"
    return (
        f"{before:.3f} -> {after:.3f} nats per token, {abs(entropy - after):.3f} {where} the "
        f"unigram entropy {entropy:.3f}"
    )


def _profile(profile: RunProfile) -> str:
    """The layer in the middle, which is a block, and what an op costs besides."""
    middle = len(profile.problem.layers) // 2
    block, dispersion = profile.problem.layers[middle], profile.dispersions[middle]
    parts = (
        ("F", block.forward_us, dispersion.forward),
        ("I", block.backward_input_us, dispersion.backward_input),
        ("W", block.backward_weight_us, dispersion.backward_weight),
    )
    times = ", ".join(f"{kind} {us / 1e3:.2f} ms (+-{spread:.0%})" for kind, us, spread in parts)
    overhead_us = median(rank.op_overhead_us for rank in profile.problem.ranks)
    where = "" if profile.source == "profile" else f"; from a run until {profile.measured_at:%F %R}"
    return f"a block {times}; an op {overhead_us:.0f} us besides{where}"


def _one_f_one_b(summary: RunSummary, planned_s: float) -> str:
    if summary.one_f_one_b_ns is None:
        return ""
    static_s = summary.one_f_one_b_ns / 1e9
    return f"{_ms(static_s)} (simulated), {static_s / planned_s:.2f} x the plan"


def summary_markdown(summary: RunSummary, *, title: str) -> str:
    """The whole ``summary.md``."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in headline(summary))
    attempts = "\n".join(_attempt_row(attempt) for attempt in summary.attempts)
    notes = "\n".join(f"- {note}" for note in summary.notes)
    clocks = f"\n## Clocks\n\n{clocks_markdown(summary.clocks)}\n" if summary.clocks else ""
    return f"""# {title}

| | |
|---|---|
{rows}

![planned over measured](timeline.svg)

`trace.json` opens in Perfetto or chrome://tracing.

## Planned against measured

The plan was made from a profile before the run; medians over the steps. A message takes from
ready to arrived.{_NEXT_PROFILE if summary.profile else ""}

{predictions_markdown(summary.predictions)}

## What the planner tried

| method | placement | makespan | |
|---|---|---|---|
{attempts}
{clocks}
## Notes

{notes}
"""


def _attempt_row(attempt: Attempt) -> str:
    if attempt.plan is None:
        return f"| {attempt.method} | {attempt.placement} | - | {attempt.error} |"
    timeline = attempt.plan.timeline
    return (
        f"| {attempt.method} | {attempt.placement} | {_ms(timeline.makespan_ns / 1e9)} | "
        f"bubble {timeline.bubble_ratio:.1%} |"
    )


def _quality(plan: Plan) -> str:
    if plan.status == "proven":
        return "proven optimal for its placement"
    return f"at most {rounded_up(plan.gap, 1)} above the lower bound of its placement"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
