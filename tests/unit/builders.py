"""Small problems and schedules for tests, and random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.ops import Op, parse_op
from crosspipe_ray.problem import Problem
from crosspipe_ray.schedule import Schedule
from crosspipe_ray.timeline import Timeline

UNIT_STAGE = {
    "forward_us": 1,
    "backward_input_us": 1,
    "backward_weight_us": 1,
    "activation_bytes": 1,
    "output_bytes": 1000,
}
# Placements of at most six stages on at most three ranks, patterns and others.
PLACEMENTS = (
    (0,),
    (0, 0),
    (0, 1),
    (1, 0),
    (0, 1, 2),
    (2, 0, 1),
    (0, 1, 1, 0),
    (0, 1, 2, 2, 1, 0),
    (0, 1, 0, 1),
    (0, 1, 2, 0, 1, 2),
    (0, 0, 1),
    (1, 0, 0, 1, 0),
    (0, 1, 0, 2, 1),
)
CODECS = (
    None,
    None,
    {"kind": "bf16", "encode_bytes_per_s": 4e9, "decode_bytes_per_s": 8e9},
    {"kind": "int8", "encode_bytes_per_s": 2e9},
)
CURVES = (None, None, None, [[500, 4e8], [2000, 1e9]], [[1000, 1e9], [1500, 2e8], [3000, 5e8]])


def problem_data(
    placement: Sequence[int],
    num_microbatches: int,
    *,
    stage: Mapping[str, Any] | None = None,
    rank: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A problem as JSON data: unit stages on the given ranks, all alike."""
    return {
        "num_microbatches": num_microbatches,
        "ranks": [dict(rank or {}) for _ in set(placement)],
        "stages": [{"rank": on, **UNIT_STAGE, **(stage or {})} for on in placement],
        **fields,
    }


def make_problem(placement: Sequence[int], num_microbatches: int, **fields: Any) -> Problem:
    """The problem of `problem_data`."""
    return Problem.model_validate(problem_data(placement, num_microbatches, **fields))


def link(src: int | str, dst: int | str, latency_us: float, occupancy_us: float) -> dict[str, Any]:
    """A link that a message of 1000 bytes occupies for the given time."""
    rate = 1e9 / occupancy_us if occupancy_us else None
    return {"src": src, "dst": dst, "latency_us": latency_us, "bandwidth_bytes_per_s": rate}


def regions_problem(
    num_ranks: int,
    num_microbatches: int,
    *,
    memory: int | None = None,
    latency_us: float = 0.0,
    occupancy_us: float = 0.0,
    num_clusters: int = 2,
    **fields: Any,
) -> Problem:
    """Unit stages, one per rank, in a row of clusters; ``memory`` counts microbatches per rank."""
    data = problem_data(range(num_ranks), num_microbatches, **fields)
    for index, rank in enumerate(data["ranks"]):
        rank |= {"cluster": f"c{index * num_clusters // num_ranks}", "memory_limit_bytes": memory}
    data["links"] = [
        link(f"c{src}", f"c{dst}", latency_us, occupancy_us)
        for src in range(num_clusters)
        for dst in (src - 1, src + 1)
        if 0 <= dst < num_clusters
    ]
    return Problem.model_validate(data)


def with_message_memory(problem: Problem, *, spare_bytes: int) -> Problem:
    """The same problem where each rank that takes messages has room for the largest, and more."""
    largest = [0] * len(problem.ranks)
    for transfer in (each for cost in stage_costs(problem) for each in cost.transfers):
        if transfer.src != transfer.dst:
            largest[transfer.dst] = max(largest[transfer.dst], transfer.num_bytes)
    data = problem.model_dump()
    for rank, num_bytes in zip(data["ranks"], largest, strict=True):
        rank["message_memory_limit_bytes"] = max(0, num_bytes + spare_bytes)
    return Problem.model_validate(data)


def ops(text: str) -> list[Op]:
    """Ops that are written with spaces in between."""
    return [parse_op(word) for word in text.split()]


def make_schedule(*ranks: str) -> Schedule:
    """A schedule of one text per rank."""
    return Schedule.of(ops(text) for text in ranks)


def spans_us(timeline: Timeline) -> dict[str, tuple[float, float]]:
    """Start and end of every compute op and collective."""
    return {
        str(span.op): (span.start_ns / 1000, span.end_ns / 1000)
        for spans in (*timeline.ranks, *timeline.collectives)
        for span in spans
    }


def sends_us(timeline: Timeline) -> dict[str, tuple[float, float, float]]:
    """Start, end and arrival of every timed message."""
    return {
        str(send.op): (send.start_ns / 1000, send.end_ns / 1000, send.arrive_ns / 1000)
        for send in timeline.sends
    }


@st.composite
def problems(
    draw: st.DrawFn,
    placements: Sequence[Sequence[int]] = PLACEMENTS,
    most_microbatches: int = 5,
) -> Problem:
    """Small problems of every kind: any placement, unequal times, tight memory, shared channels."""
    placement = draw(st.sampled_from(placements))
    stages = [draw(_stages(on)) for on in placement]
    if draw(st.booleans()):  # equal stages, where the fixed schedules are at home
        stages = [{**stages[0], "rank": on} for on in placement]
    ranks = [draw(_ranks([s for s in stages if s["rank"] == on])) for on in sorted(set(placement))]
    data = {
        "num_microbatches": draw(st.integers(1, most_microbatches)),
        "ranks": ranks,
        "stages": stages,
        "links": draw(_links(len(ranks))) + draw(_cluster_links({r["cluster"] for r in ranks})),
        "fused_backward": draw(st.sampled_from((False, False, True))),
    }
    return Problem.model_validate(data)


@st.composite
def layered_problems(draw: st.DrawFn) -> Problem:
    """Small problems with unequal layers, of which each rank has room for about a half or more."""
    layers = draw(st.lists(_layers(), min_size=3, max_size=8))
    num_ranks = draw(st.integers(2, 3))
    ranks = [draw(_ranks(layers[::2])) for _ in range(num_ranks)]
    data = {
        "num_microbatches": draw(st.integers(1, 4)),
        "ranks": ranks,
        "layers": layers,
        "links": draw(_links(num_ranks)) + draw(_cluster_links({r["cluster"] for r in ranks})),
        "num_stages_per_rank": draw(st.sampled_from((None, None, 1))),
        "fused_backward": draw(st.sampled_from((False, False, True))),
    }
    return Problem.model_validate(data)


@st.composite
def _stages(draw: st.DrawFn, rank: int) -> dict[str, Any]:
    seldom = st.sampled_from((0, 0, 0, 2))
    return {
        **draw(_layers()),
        "rank": rank,
        "gather_us": draw(seldom),
        "reduce_us": draw(seldom),
    }


@st.composite
def _layers(draw: st.DrawFn) -> dict[str, Any]:
    time_us, seldom = st.integers(0, 5), st.sampled_from((0, 0, 0, 2))
    activation = draw(st.integers(0, 4))
    return {
        "forward_us": draw(time_us),
        "backward_input_us": draw(time_us),
        "backward_weight_us": draw(time_us),
        "activation_bytes": activation,
        "freed_by_backward_input_bytes": draw(st.integers(0, activation)),
        "output_bytes": draw(st.integers(0, 3)) * 1000,
        "input_gradient_bytes": draw(st.sampled_from((None, 500))),
        "weight_bytes": draw(seldom),
        "optimizer_bytes": draw(seldom),
    }


@st.composite
def _ranks(draw: st.DrawFn, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A rank with memory for at least one microbatch."""
    kinds = ("activation_bytes", "weight_bytes", "optimizer_bytes")
    needed = sum(stage[kind] for stage in stages for kind in kinds)
    spare = draw(st.sampled_from((None, 0, 1, 3, 8)))
    return {
        "cluster": draw(st.sampled_from(("us", "eu"))),
        "memory_limit_bytes": None if spare is None else needed + spare,
        "op_overhead_us": draw(st.sampled_from((0, 0, 0.5))),
    }


@st.composite
def _links(draw: st.DrawFn, num_ranks: int) -> list[dict[str, Any]]:
    pairs = [(src, dst) for src in range(num_ranks) for dst in range(num_ranks) if src != dst]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    channels = st.sampled_from((None, None, "shared"))
    return [
        {
            **link(src, dst, draw(st.integers(0, 6)), draw(st.integers(0, 3))),
            "channel": draw(channels),
            "message_overhead_us": draw(st.sampled_from((0, 0, 0.25))),
            "bandwidth_curve": draw(st.sampled_from(CURVES)),
            "codec": draw(st.sampled_from(CODECS)),
        }
        for src, dst in chosen
    ]


@st.composite
def _cluster_links(draw: st.DrawFn, clusters: set[str]) -> list[dict[str, Any]]:
    if len(clusters) == 1 or not draw(st.booleans()):
        return []
    there = link("us", "eu", draw(st.integers(0, 6)), draw(st.integers(0, 3)))
    back = link("eu", "us", draw(st.integers(0, 6)), draw(st.integers(0, 3)))
    back["codec"] = draw(st.sampled_from(CODECS))
    return [{**there, "channel": draw(st.sampled_from((None, "per_pair")))}, back]


def renamed(problem: Problem, names: list[int]) -> Problem:
    """The same problem where rank ``r`` is called ``names[r]``."""
    data = problem.model_dump()
    data["ranks"] = [data["ranks"][names.index(name)] for name in range(len(names))]
    for stage in data["stages"]:
        stage["rank"] = names[stage["rank"]]
    for link in data["links"]:
        for end in ("src", "dst"):
            if isinstance(link[end], int):
                link[end] = names[link[end]]
    return Problem.model_validate(data)
