"""A plan: a schedule, its timeline on the problem, and how good it is (file format, version 1).

A plan file is complete: it can be rehearsed and trained from by itself. Reading one checks
everything, so an edited plan that breaks a rule never gets to a rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field

from crosspipe_ray.errors import PlanError, ScheduleError
from crosspipe_ray.files import write_atomically
from crosspipe_ray.ops import Op, parse_op
from crosspipe_ray.parsing import parse_model, read_json
from crosspipe_ray.problem import Problem, Record, problem_json
from crosspipe_ray.schedule import Schedule, validate
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Message, Span, Timeline

Status = Literal["proven", "gap", "time_limit"]
_EDITED = "the file was edited: plan it again"


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule for a problem, with its simulated timeline.

    Attributes:
        status: ``proven`` optimal for its placement, ``gap`` to the bound, or cut short by the
            ``time_limit``.
        lower_bound_ns: no schedule of this problem is shorter.
        wall_s: time that planning took.
        p50_ns, p95_ns: quantiles of the makespan over sampled latencies, where they were sampled.
    """

    problem: Problem
    schedule: Schedule
    timeline: Timeline
    method: str
    status: Status
    seed: int
    lower_bound_ns: int
    wall_s: float
    p50_ns: int | None = None
    p95_ns: int | None = None

    @property
    def gap(self) -> float:
        """How much longer than the bound the plan is at most, as a share of the bound."""
        return self.timeline.makespan_ns / self.lower_bound_ns - 1 if self.lower_bound_ns else 0.0

    def with_bound(self, lower_bound_ns: int) -> Plan:
        """The plan with another bound, which may prove it."""
        is_proven = self.timeline.makespan_ns <= lower_bound_ns
        status: Status = "proven" if is_proven else self.status
        return replace(self, lower_bound_ns=lower_bound_ns, status=status)

    @property
    def send_order(self) -> tuple[Op, ...]:
        """SEND ops in the order in which their channels serve them."""
        return tuple(message.op for message in self.timeline.sends)


class SpanEntry(Record):
    """One op of a rank, or one collective."""

    op: str
    start_us: float = Field(ge=0)
    end_us: float = Field(ge=0)


class SendEntry(SpanEntry):
    """One timed message."""

    src: int
    dst: int
    arrive_us: float = Field(ge=0)


class PlanFile(Record):
    """The file.

    ``collectives`` is one list for all ranks: an op names its stage, and so its rank.
    """

    version: Literal[1] = 1
    method: str
    status: Status
    seed: int = 0
    makespan_us: float = Field(ge=0)
    lower_bound_us: float = Field(ge=0)
    bubble_ratio: float
    wall_s: float = Field(ge=0)
    problem: Problem
    problem_sha256: str
    ranks: tuple[tuple[SpanEntry, ...], ...]
    sends: tuple[SendEntry, ...] = ()
    collectives: tuple[SpanEntry, ...] = ()
    peak_message_bytes: tuple[int, ...] | None = None
    p50_us: float | None = Field(None, ge=0)
    p95_us: float | None = Field(None, ge=0)


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan file, whole or not at all."""
    write_atomically(path, json.dumps(plan_json(plan), separators=(",", ":")) + "\n")


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as JSON data."""
    timeline = plan.timeline
    quantiles = {"p50_us": plan.p50_ns, "p95_us": plan.p95_ns}
    return {
        "version": 1,
        "method": plan.method,
        "status": plan.status,
        "seed": plan.seed,
        "makespan_us": timeline.makespan_ns / 1000,
        "lower_bound_us": plan.lower_bound_ns / 1000,
        **{name: time / 1000 for name, time in quantiles.items() if time is not None},
        "bubble_ratio": round(timeline.bubble_ratio, 6),
        "wall_s": round(plan.wall_s, 6),
        "problem": problem_json(plan.problem),
        "problem_sha256": plan.problem.sha256,
        "ranks": [[_span_json(span) for span in spans] for spans in timeline.ranks],
        "sends": [_send_json(message) for message in timeline.sends],
        "collectives": [_span_json(span) for spans in timeline.collectives for span in spans],
        "peak_message_bytes": list(timeline.peak_message_bytes),
    }


def read_plan(path: Path, *, problem: Problem | None = None) -> Plan:
    """Reads and checks a plan file.

    Args:
        path: the file.
        problem: the problem that the plan must be for; default: any.

    Raises:
        PlanError: the file is wrong, or the plan is for another problem, or its times are not what
            its ops take.
        ScheduleError: its ops break a rule (missing, twice, in the wrong order, over memory, in a
            cycle).
    """
    file = parse_model(
        PlanFile, read_json(path, error=PlanError), source=str(path), error=PlanError
    )
    if file.problem_sha256 != file.problem.sha256:
        raise PlanError(
            f"{path}: problem_sha256 is not the digest of the problem in the file; plan it again"
        )
    if problem is not None and problem.sha256 != file.problem.sha256:
        raise PlanError(
            f"{path}: the plan is for another problem ({file.problem_sha256[:12]}), not for the "
            f"given one ({problem.sha256[:12]}); plan it again with `crosspipe plan`"
        )
    try:
        return _checked(file, path)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}", error.grid) from None


def _checked(file: PlanFile, path: Path) -> Plan:
    if not file.problem.stages:
        raise PlanError(
            f"{path}: problem.stages: missing; a plan names the stage and rank of every layer"
        )
    schedule = Schedule.of(_ops(entries) for entries in file.ranks)
    validate(file.problem, schedule)
    timeline = simulate(file.problem, schedule, send_order=_ops(file.sends))
    _check_times(file, timeline, path)
    return Plan(
        problem=file.problem,
        schedule=schedule,
        timeline=timeline,
        method=file.method,
        status=file.status,
        seed=file.seed,
        lower_bound_ns=_ns(file.lower_bound_us),
        wall_s=file.wall_s,
        p50_ns=None if file.p50_us is None else _ns(file.p50_us),
        p95_ns=None if file.p95_us is None else _ns(file.p95_us),
    )


def _check_times(file: PlanFile, timeline: Timeline, path: Path) -> None:
    if _ns(file.makespan_us) != timeline.makespan_ns:
        raise PlanError(
            f"{path}: makespan_us is {file.makespan_us:.3f}, but its ops take "
            f"{timeline.makespan_ns / 1000:.3f} us; {_EDITED}"
        )
    spans = chain.from_iterable((*timeline.ranks, *timeline.collectives))
    planned: dict[Op, tuple[int, ...]] = {span.op: span[1:] for span in spans}
    planned |= {message.op: message[1:] for message in timeline.sends}
    for entry in (*chain.from_iterable(file.ranks), *file.sends, *file.collectives):
        if planned.get(parse_op(entry.op)) != _stated(entry):
            raise PlanError(f"{path}: {entry.op} has not the times that it takes; {_EDITED}")


def _stated(entry: SpanEntry) -> tuple[int, ...]:
    """An entry as the fields of a Span or Message after its op."""
    times = _ns(entry.start_us), _ns(entry.end_us)
    if isinstance(entry, SendEntry):
        return (entry.src, entry.dst, *times, _ns(entry.arrive_us))
    return times


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def _ops(entries: Iterable[SpanEntry]) -> list[Op]:
    return [parse_op(entry.op) for entry in entries]


def _span_json(span: Span) -> dict[str, object]:
    return {"op": str(span.op), "start_us": span.start_ns / 1000, "end_us": span.end_ns / 1000}


def _send_json(message: Message) -> dict[str, object]:
    return {
        "op": str(message.op),
        "src": message.src,
        "dst": message.dst,
        "start_us": message.start_ns / 1000,
        "end_us": message.end_ns / 1000,
        "arrive_us": message.arrive_ns / 1000,
    }
