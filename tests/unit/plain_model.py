"""Whether any schedule is as short as asked, by a plain model for CP-SAT.

Like the validator it knows the description of the format alone: no bounds, no heads or tails, none
of what a planner may conclude.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ortools.sat.python import cp_model

from tests.unit.independent_validator import Json, Key, View, as_ns, occupancy_ns

_WHOLE = (0, 1, 1)
_EFFORT = 0.1  # in the solver's deterministic time


def has_schedule_within(problem: Json, limit_ns: int) -> bool | None:
    """Whether there is a schedule of at most so many nanoseconds; None: not found out in time."""
    if limit_ns < 0:
        return False
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = _EFFORT
    status = solver.solve(_Step(problem, limit_ns).model)
    return None if status == cp_model.UNKNOWN else status != cp_model.INFEASIBLE


class _Step:
    """All ops, messages and collectives as intervals between 0 and the limit."""

    def __init__(self, problem: Json, limit_ns: int) -> None:
        self.model = cp_model.CpModel()
        self._view = View({"problem": problem, "ranks": [], "sends": [], "collectives": []})
        self._limit_ns = limit_ns
        self._on_machine: dict[object, list[Any]] = defaultdict(list)
        self._ops: dict[Key, Any] = {}  # I stands for B too; then W takes no time, at its end
        for stage in range(len(self._view.stages)):
            for m in self._view.microbatches:
                self._add_ops(stage, m)
            self._add_collectives(stage)
        for key in self._ops:
            self._after_the_microbatch_before(key)
            self._after_its_input(key)
        for rank in range(len(problem["ranks"])):
            self._within_memory(rank)
        for intervals in self._on_machine.values():
            self.model.add_no_overlap(intervals)

    def _add(self, machine: object, size: Any) -> Any:
        start, end = (self.model.new_int_var(0, self._limit_ns, "") for _ in range(2))
        interval = self.model.new_interval_var(start, size, end, "")
        self._on_machine[machine].append(interval)
        return interval

    def _after(self, later: Any, earlier: Any, lag_ns: int = 0) -> None:
        self.model.add(later.start_expr() >= earlier.end_expr() + lag_ns)

    def _add_ops(self, stage: int, m: int) -> None:
        """F, then I and W or B in place of them."""
        rank = self._view.rank(stage)
        f, i, w, b = (self._view.duration((stage, kind, m), _WHOLE) for kind in "FIWB")
        is_b = self.model.new_bool_var("")
        if self._view.is_fused(stage):
            self.model.add(is_b == 1)
        forward = self._ops[stage, "F", m] = self._add(rank, f)
        backward = self._ops[stage, "I", m] = self._add(rank, i + (b - i) * is_b)
        weight = self._ops[stage, "W", m] = self._add(rank, w - w * is_b)
        self._after(backward, forward)
        self._after(weight, backward)
        self.model.add(weight.end_expr() == backward.end_expr()).only_enforce_if(is_b)

    def _add_collectives(self, stage: int) -> None:
        costs, channel = self._view.stages[stage], ("collectives", self._view.rank(stage))
        gather = self._add(channel, as_ns(costs.get("gather_us", 0)))
        reduction = self._add(channel, as_ns(costs.get("reduce_us", 0)))
        for m in self._view.microbatches:
            self._after(self._ops[stage, "F", m], gather)
            self._after(reduction, self._ops[stage, "W", m])

    def _after_the_microbatch_before(self, key: Key) -> None:
        """F's and I's; of W's it is no matter which goes first."""
        stage, kind, m = key
        if m and kind != "W":
            self._after(self._ops[key], self._ops[stage, kind, m - 1])

    def _after_its_input(self, key: Key) -> None:
        stage, kind, m = key
        source = stage - 1 if kind == "F" else stage + 1
        if kind == "W" or not 0 <= source < len(self._view.stages):
            return
        made, ends = self._ops[source, kind, m], (self._view.rank(source), self._view.rank(stage))
        link = self._view.link(*ends)
        if link is None:
            self._after(self._ops[key], made)
            return
        num_bytes = self._view.message_bytes(source, "SEND_F" if kind == "F" else "SEND_B")
        channel = "channel", self._view.channel(*ends)
        message = self._add(channel, occupancy_ns(link, num_bytes))
        self._after(message, made)
        self._after(self._ops[key], message, as_ns(link.get("latency_us", 0)))

    def _within_memory(self, rank: int) -> None:
        limit = self._view.problem["ranks"][rank].get("memory_limit_bytes")
        if limit is None:
            return
        held = [
            (self._held((stage, "F", m), (stage, kind, m)), num_bytes)
            for stage, costs in enumerate(self._view.stages)
            for kind, num_bytes in _given_back(costs)
            for m in self._view.microbatches
            if self._view.rank(stage) == rank
        ]
        intervals, demands = zip(*held, strict=True)
        self.model.add_cumulative(intervals, demands, limit - self._view.resident(rank))

    def _held(self, taken: Key, given_back: Key) -> Any:
        start, end = self._ops[taken].start_expr(), self._ops[given_back].end_expr()
        size = self.model.new_int_var(0, self._limit_ns, "")
        return self.model.new_interval_var(start, size, end, "")


def _given_back(costs: Json) -> tuple[tuple[str, int], tuple[str, int]]:
    """The kinds of op that give memory back, and how much."""
    by_input = costs.get("freed_by_backward_input_bytes", 0)
    return ("I", by_input), ("W", costs.get("activation_bytes", 0) - by_input)
