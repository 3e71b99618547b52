"""A plan: a schedule, its timeline on the problem, and how good it is (file format, version 1).

A plan file is complete: it can be rehearsed and trained from by itself. Reading one checks
everything, so an edited plan that breaks a rule never gets to a rank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from crosspipe_ray.columns import Ops, Parts, PerRank
from crosspipe_ray.errors import PlanError, ScheduleError
from crosspipe_ray.files import write_atomically
from crosspipe_ray.ops import WHOLE, Op, Part
from crosspipe_ray.parsing import parse_json, parse_model, read_json
from crosspipe_ray.plan_format import (
    PlanFile,
    PlanHeader,
    Status,
    message_of,
    ranks_json,
    send_json,
    span_json,
    span_of,
    to_ns,
)
from crosspipe_ray.problem import Problem, problem_json
from crosspipe_ray.rules import validate
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.simulate import simulate
from crosspipe_ray.timeline import Messages, Spans, Timeline, spans_per_rank

_EDITED = "the file was edited: plan it again"
_PARQUET = ".parquet"
_MOST_JSON_OPS = 1_000_000
RowsT = TypeVar("RowsT", Spans, Messages)


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
    def send_order(self) -> Sequence[Op]:
        """SEND ops in the order in which their channels serve them."""
        return Messages.of(self.timeline.sends).ops


# Header; ops, what parts of ops they are, and messages.
_Contents = tuple[PlanHeader, PerRank[Spans], Parts | None, Messages]


def check_can_hold(path: Path, num_ops: int) -> None:
    """Refuses to write millions of ops as JSON, which would fill the memory.

    Raises:
        PlanError: says what the file should be called.
    """
    if path.suffix != _PARQUET and num_ops > _MOST_JSON_OPS:
        raise PlanError(
            f"{path}: {num_ops} ops are too many for JSON, which takes {_MOST_JSON_OPS}; "
            f"name it {path.with_suffix(_PARQUET).name}"
        )


def write_plan(plan: Plan, path: Path) -> None:
    """Writes a plan file, whole or not at all: ``.parquet`` as Parquet, any other as JSON.

    Raises:
        PlanError: there are too many ops for JSON.
        InputError: the folder does not exist or cannot be written.
    """
    timeline = plan.timeline
    check_can_hold(path, sum(map(len, timeline.ranks)))
    if path.suffix == _PARQUET:
        from crosspipe_ray.plan_table import write_table

        header = json.dumps({**_summary_json(plan), **_rest_json(plan)})
        ranks, sends = spans_per_rank(timeline.ranks), Messages.of(timeline.sends)
        write_table(path, header, ranks, timeline.parts, sends)
    else:
        write_atomically(path, json.dumps(plan_json(plan), separators=(",", ":")) + "\n")


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as JSON data."""
    return {
        **_summary_json(plan),
        "ranks": ranks_json(plan.timeline),
        "sends": [send_json(message) for message in plan.timeline.sends],
        **_rest_json(plan),
    }


def _summary_json(plan: Plan) -> dict[str, object]:
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
    }


def _rest_json(plan: Plan) -> dict[str, object]:
    timeline = plan.timeline
    return {
        "collectives": [span_json(span) for spans in timeline.collectives for span in spans],
        "peak_message_bytes": list(timeline.peak_message_bytes),
    }


def read_plan(path: Path, *, problem: Problem | None = None) -> Plan:
    """Reads and checks a plan file, JSON or Parquet.

    Args:
        path: the file.
        problem: the problem that the plan must be for; default: any.

    Raises:
        PlanError: the file is wrong, or the plan is for another problem, or its times are not what
            its ops take.
        ScheduleError: its ops break a rule (missing, twice, in the wrong order, over memory, in a
            cycle).
    """
    contents = _read_parquet(path) if _is_parquet(path) else _read_json(path)
    header = contents[0]
    if header.problem_sha256 != header.problem.sha256:
        raise PlanError(
            f"{path}: problem_sha256 is not the digest of the problem in the file; plan it again"
        )
    if problem is not None and problem.sha256 != header.problem.sha256:
        raise PlanError(
            f"{path}: the plan is for another problem ({header.problem_sha256[:12]}), not for the "
            f"given one ({problem.sha256[:12]}); plan it again with `crosspipe plan`"
        )
    if not header.problem.stages:
        raise PlanError(
            f"{path}: problem.stages: missing; a plan names the stage and rank of every layer"
        )
    try:
        return _checked(contents, path)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}", error.grid) from None


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _read_json(path: Path) -> _Contents:
    raw = read_json(path, error=PlanError)
    if isinstance(raw, dict) and "problem" not in raw and "num_microbatches" in raw:
        raise PlanError(f"{path}: a problem, no plan; make one with `crosspipe plan`")
    file = parse_model(PlanFile, raw, source=str(path), error=PlanError)
    try:
        ranks = spans_per_rank([span_of(entry) for entry in entries] for entries in file.ranks)
        sends = Messages.of(map(message_of, file.sends))
        parts = Parts.of(Part(*(e.part or WHOLE)) for entries in file.ranks for e in entries)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None
    return file, ranks, parts, sends


def _read_parquet(path: Path) -> _Contents:
    from crosspipe_ray.plan_table import read_metadata, read_table

    raw = parse_json(read_metadata(path), source=str(path), error=PlanError)
    header = parse_model(PlanHeader, raw, source=str(path), error=PlanError)
    return header, *read_table(path, len(header.problem.ranks))


def _checked(contents: _Contents, path: Path) -> Plan:
    header, ranks, parts, sends = contents
    codes, lengths = ranks.flat.ops.codes, np.diff(ranks.first).tolist()
    schedule = Schedule.of_codes(codes, lengths, parts=parts)
    validate(header.problem, schedule)
    timeline = simulate(header.problem, schedule, send_order=sends.ops)
    _check_times(header, ranks, sends, timeline, path)
    return Plan(
        problem=header.problem,
        schedule=schedule,
        timeline=timeline,
        method=header.method,
        status=header.status,
        seed=header.seed,
        lower_bound_ns=to_ns(header.lower_bound_us),
        wall_s=header.wall_s,
        p50_ns=None if header.p50_us is None else to_ns(header.p50_us),
        p95_ns=None if header.p95_us is None else to_ns(header.p95_us),
    )


def _check_times(
    header: PlanHeader, ranks: PerRank[Spans], sends: Messages, timeline: Timeline, path: Path
) -> None:
    if to_ns(header.makespan_us) != timeline.makespan_ns:
        raise PlanError(
            f"{path}: makespan_us is {header.makespan_us:.3f}, but its ops take "
            f"{timeline.makespan_ns / 1000:.3f} us; {_EDITED}"
        )
    _check_bound(header, path)
    stated = Spans.of(map(span_of, header.collectives))
    planned = Spans.of(chain.from_iterable(timeline.collectives))
    wrong = chain(
        _differing(ranks.flat, spans_per_rank(timeline.ranks).flat),
        _differing(sends, Messages.of(timeline.sends)),
        _differing(stated, planned),
    )
    for op in wrong:
        raise PlanError(f"{path}: {op} has not the times that it takes; {_EDITED}")


def _check_bound(header: PlanHeader, path: Path) -> None:
    bound_us, makespan_us = header.lower_bound_us, header.makespan_us
    if to_ns(bound_us) > to_ns(makespan_us):
        raise PlanError(
            f"{path}: lower_bound_us is {bound_us:.3f}, more than the makespan_us "
            f"{makespan_us:.3f}; {_EDITED}"
        )
    if header.status == "proven" and to_ns(bound_us) < to_ns(makespan_us):
        raise PlanError(
            f"{path}: status is proven, but lower_bound_us is {bound_us:.3f}, less than the "
            f"makespan_us {makespan_us:.3f}; {_EDITED}"
        )


def _differing(stated: RowsT, planned: RowsT) -> Ops:
    """Ops that do not stand with the same values in both, in whatever order."""
    if not np.array_equal(stated.columns[0], planned.columns[0]):
        stated, planned = _by_op(stated), _by_op(planned)
    codes, other_codes = stated.columns[0], planned.columns[0]
    if not np.array_equal(codes, other_codes):  # one too many, or too few
        return Ops(np.setxor1d(codes, other_codes))
    pairs = zip(stated.columns, planned.columns, strict=True)
    return Ops(codes[np.any([mine != its for mine, its in pairs], axis=0)])


def _by_op(rows: RowsT) -> RowsT:
    in_order = np.argsort(rows.columns[0], kind="stable")
    return type(rows)(*(column[in_order] for column in rows.columns))
