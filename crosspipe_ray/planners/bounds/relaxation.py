"""How early and how late each op can be at best: heads and tails over all that must precede it.

The ops of one stage and kind form a row of M microbatches, which run in order. A head is a lower
bound on an op's start. Four arguments raise it:

- *data*: F of stage s waits for F of s - 1, I for I of s + 1, I for its F, W for its I. A link that
  carries one row's messages one at a time delays the m-th by its place in the queue.
- *memory*: with room for L microbatches, F of m waits for W of m - L. Where I frees a part, F waits
  for an earlier I and an earlier W. On a rank with several stages, F of m at stage k comes after F
  of m at its earlier stages, so those m + 1 microbatches count against the room too, and at most m
  of each have been given back. Nothing of a microbatch is given back before I of the last stage, so
  with room for L microbatches of all stages, F of m at the last stage waits for its I of m - L.
- *rank*: of the ops that must run before X on the same rank, those with heads from h on cannot end
  before h plus their work, for every h. Which ops must run before X is known for each row as a
  shift: op m - shift and all before it.
- *order*: the microbatches of a row follow each other.

Tails are the heads of the mirrored problem: time runs backwards, microbatches count down, every
edge is turned round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.compiled import Loop, as_arrays, as_lists
from crosspipe_ray.costs import StageCosts, Transfer
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.bounds import sweeps
from crosspipe_ray.planners.bounds.precedence import Precedence, Window, memory_windows
from crosspipe_ray.planners.bounds.sweeps import Bonds, Work, raise_heads
from crosspipe_ray.problem import Problem

Times = NDArray[np.int64]
NUM_KINDS = 3  # F, I (or B) and W (nothing after B)
_MAX_SWEEPS = 64
_LARGE = 1_000_000  # ops, above which few sweeps must do
_FEW_SWEEPS = 8
_SWEEPS, _PYTHON_S = 5, 3e-6  # usual number of sweeps, and Python's time for an op in one
_RAISE = Loop(
    sweeps.raise_heads,
    sweeps.is_stale,
    sweeps.raise_row,
    sweeps.raise_by_edge,
    sweeps.raise_by_rank,
    sweeps.forget_periods,
    sweeps.join,
)


@dataclass(frozen=True, slots=True)
class Edge:
    """Op ``m`` of row ``target`` waits for op ``m - shift`` of row ``source`` and its message."""

    source: int
    target: int
    shift: int = 0
    occupancy_ns: int = 0
    latency_ns: int = 0


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Rows (3 x stage + kind) and what binds them.

    Attributes:
        durations: per row.
        earliest: per row, when its first op may start.
        edges: into each row.
        order: rows in an order in which data flows.
        before: per row, (row of the same rank, shift) of what must have run: its op ``m - shift``.
    """

    num_microbatches: int
    durations: tuple[int, ...]
    earliest: tuple[int, ...]
    edges: tuple[tuple[Edge, ...], ...]
    order: tuple[int, ...]
    before: tuple[tuple[tuple[int, int], ...], ...]


def row_of(stage: int, kind: int) -> int:
    """Index of a row."""
    return NUM_KINDS * stage + kind


def split_durations(
    problem: Problem, costs: Sequence[StageCosts], stage: int
) -> tuple[int, int, int]:
    """Times of F, I and W; of F, B and nothing where the backward is fused."""
    forward, backward_input, weight, both = costs[stage].duration_ns
    return (forward, both, 0) if problem.is_fused(stage) else (forward, backward_input, weight)


def least_durations(
    problem: Problem, costs: Sequence[StageCosts], stage: int
) -> tuple[int, int, int]:
    """As `split_durations`; but any stage may run B, which pays the rank's op overhead once."""
    forward, backward, weight = split_durations(problem, costs, stage)
    return forward, backward, min(weight, costs[stage].duration_ns[Kind.B] - backward)


def saved_by_merging_ns(problem: Problem, costs: Sequence[StageCosts]) -> list[int]:
    """Per stage, by how much B is shorter than I and W: a fixed cost, or a rounded nanosecond."""
    stages = range(len(costs))
    apart = (split_durations(problem, costs, stage) for stage in stages)
    least = (least_durations(problem, costs, stage) for stage in stages)
    return [sum(each) - sum(merged) for each, merged in zip(apart, least, strict=True)]


def gathered_ns(problem: Problem, costs: Sequence[StageCosts]) -> list[int]:
    """Per row, when what its first op needs is gathered; a rank gathers in model order."""
    done_ns = [0] * (NUM_KINDS * len(costs))
    for stages in problem.stages_of_rank:
        ends = accumulate(costs[stage].gather_ns for stage in stages)
        for stage, end_ns in zip(stages, ends, strict=True):
            if costs[stage].gather_ns:
                done_ns[row_of(stage, Kind.F)] = end_ns
    return done_ns


def relax(problem: Problem, costs: Sequence[StageCosts]) -> Relaxation:
    """The rows and edges of a problem."""
    num_stages = len(costs)
    windows = memory_windows(problem, costs)
    edges: list[list[Edge]] = [[] for _ in range(NUM_KINDS * num_stages)]
    for edge in (*_data_edges(costs), *_memory_edges(problem, windows)):
        edges[edge.target].append(edge)
    forwards = [row_of(stage, Kind.F) for stage in range(num_stages)]
    backwards = [
        row_of(stage, kind) for stage in reversed(range(num_stages)) for kind in (Kind.I, Kind.W)
    ]
    return Relaxation(
        num_microbatches=problem.num_microbatches,
        durations=tuple(
            time for stage in range(num_stages) for time in least_durations(problem, costs, stage)
        ),
        earliest=tuple(gathered_ns(problem, costs)),
        edges=tuple(map(tuple, edges)),
        order=(*forwards, *backwards),
        before=_before(problem, windows),
    )


def mirrored(relaxation: Relaxation, costs: Sequence[StageCosts]) -> Relaxation:
    """The same problem with time running backwards; op m of a row becomes op M - 1 - m."""
    num_rows = len(relaxation.durations)
    edges: list[list[Edge]] = [[] for _ in range(num_rows)]
    before: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for edge in (edge for into in relaxation.edges for edge in into):
        edges[edge.source].append(replace(edge, source=edge.target, target=edge.source))
    for row, others in enumerate(relaxation.before):
        for other, shift in others:
            before[other].append((row, shift))
    earliest = [0] * num_rows
    for stage, cost in enumerate(costs):
        earliest[row_of(stage, Kind.W)] = cost.reduce_ns
    return replace(
        relaxation,
        earliest=tuple(earliest),
        edges=tuple(map(tuple, edges)),
        order=relaxation.order[::-1],
        before=tuple(map(tuple, before)),
    )


def heads_of(relaxation: Relaxation) -> Times:
    """Lower bounds on starts, shape (rows, microbatches), by sweeps until nothing moves."""
    count, num_rows = relaxation.num_microbatches, len(relaxation.durations)
    most_before = max(map(len, relaxation.before))
    begins, ends, after, within = np.zeros((4, count * most_before + 1), dtype=np.int64)
    heads: Times = np.repeat(np.array(relaxation.earliest, dtype=np.int64), count)
    work = Work(
        heads=heads,
        seen=np.zeros(num_rows, dtype=np.int64),
        moved=np.zeros(num_rows, dtype=np.int64),
        begins=begins,
        ends=ends,
        after=after,
        within=within,
        num_periods=np.zeros(1, dtype=np.int64),
        latest=np.zeros(most_before, dtype=np.int64),
    )
    most_sweeps = _MAX_SWEEPS if num_rows * count < _LARGE else _FEW_SWEEPS
    raise_all = _RAISE.machine_code(python_s=_SWEEPS * _PYTHON_S * num_rows * count)
    if raise_all:
        raise_all(as_arrays(_bonds(relaxation)), work, count, most_sweeps)
    else:
        in_lists = as_lists(work)
        raise_heads(_bonds(relaxation), in_lists, count, most_sweeps)
        heads[:] = list(in_lists.heads)
    return heads.reshape(num_rows, count)


def _bonds(relaxation: Relaxation) -> Bonds:
    """The rows and what binds them as flat lists."""
    edges = [edge for into in relaxation.edges for edge in into]
    before = [pair for pairs in relaxation.before for pair in pairs]
    return Bonds(
        durations=list(relaxation.durations),
        order=list(relaxation.order),
        edge_first=offsets(map(len, relaxation.edges)),
        edge_source=[edge.source for edge in edges],
        edge_shift=[edge.shift for edge in edges],
        edge_occupancy=[edge.occupancy_ns for edge in edges],
        edge_latency=[edge.latency_ns for edge in edges],
        before_first=offsets(map(len, relaxation.before)),
        before_row=[row for row, _ in before],
        before_shift=[shift for _, shift in before],
    )


def offsets(sizes: Iterable[int]) -> list[int]:
    """Where pieces of these sizes begin, one after the other, and where the last one ends."""
    return list(accumulate(sizes, initial=0))


def _data_edges(costs: Sequence[StageCosts]) -> list[Edge]:
    edges = []
    last = len(costs) - 1
    for stage, cost in enumerate(costs):
        forward, backward, weight = (row_of(stage, kind) for kind in range(NUM_KINDS))
        edges += [Edge(forward, backward), Edge(backward, weight)]
        if stage < last:
            edges.append(_message(forward, row_of(stage + 1, Kind.F), cost.output))
        if stage:
            edges.append(_message(backward, row_of(stage - 1, Kind.I), cost.gradient))
    return edges


def _message(source: int, target: int, transfer: Transfer | None) -> Edge:
    if transfer is None or transfer.route is None:
        return Edge(source, target)
    return Edge(source, target, 0, transfer.occupancy_ns, transfer.route.latency_ns)


def _memory_edges(problem: Problem, windows: Sequence[Window]) -> list[Edge]:
    edges = []
    for window in windows:
        target = row_of(window.target, Kind.F)
        if window.input < problem.num_microbatches:
            edges.append(Edge(row_of(window.source, Kind.I), target, window.input))
        if window.weight < problem.num_microbatches:
            edges.append(Edge(row_of(window.source, Kind.W), target, window.weight))
    return edges


def _before(problem: Problem, windows: Sequence[Window]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Per row, the rows of its rank that must have run, with their shifts."""
    precedence = Precedence(problem, windows)
    rows: list[tuple[tuple[int, int], ...]] = []
    for stage, rank in enumerate(problem.rank_of_stage):
        others = [
            (other, kind) for other in problem.stages_of_rank[rank] for kind in range(NUM_KINDS)
        ]
        for kind in range(NUM_KINDS):
            shifts = [(row_of(*other), precedence.shift(other, (stage, kind))) for other in others]
            rows.append(tuple(pair for pair in shifts if pair[1] < precedence.never))
    return tuple(rows)
