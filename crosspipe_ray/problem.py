"""The planning problem: what has to be computed, where, and what lies between.

These models are the file format (version 1) and the type that planners take; `costs` and `topology`
derive the integer-nanosecond view that inner loops use. The rules of the clock stand in `simulate`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from crosspipe_ray.carriers import MAX_STREAMS, Carrier, TransportName
from crosspipe_ray.codec import CodecKind, encoded_bytes
from crosspipe_ray.errors import ProblemError
from crosspipe_ray.ops import MAX_SUB_BLOCKS
from crosspipe_ray.parsing import parse_model, read_json

# Sums over a step are to fit in 64 bits, in nanoseconds and in bytes.
Time = Annotated[float, Field(ge=0, le=1e10)]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
Rate = Annotated[float, Field(ge=1)]
MOST_MICROBATCHES = 1_000_000


def _rank_or_cluster(raw: object, validated: ValidatorFunctionWrapHandler) -> int | str:
    """One message, where pydantic has one per type and names the type as if it were a field."""
    try:
        end: int | str = validated(raw)
        return end
    except ValidationError:
        raise ValueError("must be the number of a rank or the name of a cluster") from None


End = Annotated[int | str, WrapValidator(_rank_or_cluster)]


class Record(BaseModel):
    """A part of a file: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rank(Record):
    """One stage actor: a device in a cluster that runs one op at a time."""

    cluster: str = Field("default", description="where it is; links may name it")
    memory_limit_bytes: Bytes | None = Field(
        None, description="activations (and weights, where stages state them)"
    )
    message_memory_limit_bytes: Bytes | None = Field(
        None, description="received inputs that wait to be used; default: no limit"
    )
    op_overhead_us: Time = Field(0.0, description="fixed cost added to every op of the rank")


class Costs(Record):
    """What one microbatch costs in a stage or layer."""

    forward_us: Time = Field(description="of F")
    backward_input_us: Time = Field(description="of I")
    backward_weight_us: Time = Field(description="of W; B takes as long as I and W")
    activation_bytes: Bytes = Field(0, description="held from the start of F")
    freed_by_backward_input_bytes: Bytes = Field(
        0, description="given back when I ends; the rest when W ends"
    )
    output_bytes: Bytes = Field(0, description="sent to the next stage when F ends")
    input_gradient_bytes: Bytes | None = Field(
        None,
        description="sent to the previous stage when I or B ends; default: its output_bytes",
    )
    weight_bytes: Bytes = Field(0, description="held all the time")
    optimizer_bytes: Bytes = Field(
        0, description="held all the time: gradients and optimizer state"
    )

    @model_validator(mode="after")
    def _frees_what_it_holds(self) -> Costs:
        if self.freed_by_backward_input_bytes > self.activation_bytes:
            raise ValueError(
                f"freed_by_backward_input_bytes {self.freed_by_backward_input_bytes} is more than "
                f"activation_bytes {self.activation_bytes}"
            )
        return self


class Stage(Costs):
    """A contiguous part of the model on one rank; stages stand in model order."""

    rank: int = Field(ge=0, description="that runs it, counted from 0")
    fused_backward: bool | None = Field(
        None, description="B in place of I and W; default: the problem's"
    )
    gather_us: Time = Field(0.0, description="data-parallel gather before its first F")
    reduce_us: Time = Field(0.0, description="data-parallel reduction after its last W")
    layers: tuple[int, int] | None = Field(
        None, description="[first, end) of the model's layers, where known"
    )


class Layer(Costs):
    """One layer, to be placed by the planner; costs are per microbatch."""

    @property
    def least_bytes(self) -> int:
        """Memory for one microbatch."""
        return self.activation_bytes + self.weight_bytes + self.optimizer_bytes


class Codec(Record):
    """How the messages of a link are encoded: fewer bytes, other numerics (see `codec`)."""

    kind: CodecKind = Field(description="bf16 keeps two bytes per value, int8 one")
    element_bytes: Literal[2, 4] = Field(4, description="of a value before the codec")
    encode_bytes_per_s: Rate | None = Field(
        None,
        description="of bytes before the codec; "
        "its time is added to the op that makes the message; default: none",
    )
    decode_bytes_per_s: Rate | None = Field(
        None, description="likewise, added to the op that takes the message"
    )

    def encoded_bytes(self, num_bytes: int) -> int:
        """Size of a message of so many bytes after the codec."""
        return encoded_bytes(self.kind, num_bytes, element_bytes=self.element_bytes)


class Link(Record):
    """A directed link between two ranks, or between all pairs of two clusters."""

    src: End = Field(description="rank that sends, or its cluster")
    dst: End = Field(description="rank that receives, or its cluster")
    latency_us: Time = Field(
        0.0, description="one way: from when a message has left the channel to its arrival"
    )
    bandwidth_bytes_per_s: Rate | None = Field(
        None, description="default: messages do not occupy the channel"
    )
    channel: str | None = Field(
        None,
        description="links of one channel share it; "
        "'per_pair': the pairs of two clusters do not share",
    )
    message_overhead_us: Time = Field(
        0.0, description="fixed time by which each message occupies the channel"
    )
    bandwidth_curve: tuple[tuple[Bytes, Rate], ...] | None = Field(
        None,
        description="(message bytes, bytes/s) points, interpolated; "
        "in place of bandwidth_bytes_per_s",
    )
    latency_samples_us: tuple[Time, ...] | None = Field(None, description="measured latencies")
    codec: Codec | None = Field(None, description="default: messages go as they are")
    transport: TransportName | None = Field(
        None, description="that has these times, and carries the messages; default: the run's"
    )
    streams: int | None = Field(
        None, ge=1, le=MAX_STREAMS, description="connections of each pair of ranks, over streams"
    )

    @property
    def carrier(self) -> Carrier | None:
        """What carries its messages; None: what the run says."""
        return None if self.transport is None else Carrier(self.transport, self.streams or 1)

    @model_validator(mode="after")
    def _only_streams_have_streams(self) -> Link:
        if self.streams is not None and self.transport != "streams":
            raise ValueError(f"streams {self.streams}: only with transport 'streams'")
        return self

    @model_validator(mode="after")
    def _curve_is_a_function(self) -> Link:
        curve = self.bandwidth_curve
        if curve is not None:
            sizes = [size for size, _ in curve]
            if not curve or sizes != sorted(set(sizes)):
                raise ValueError("bandwidth_curve must be points of growing size")
        return self


class Problem(Record):
    """Everything that a planner needs to know. Either ``stages`` or ``layers`` is given.

    A problem with ``layers`` has no stages yet: `planners.placement` makes them.
    """

    version: Literal[1] = Field(1, description="of the file format")
    num_microbatches: int = Field(gt=0, le=MOST_MICROBATCHES, description="of one step")
    ranks: tuple[Rank, ...] = Field(min_length=1, description="counted from 0")
    stages: tuple[Stage, ...] = Field(
        (), description="in model order; several may be on one rank, and every rank has one"
    )
    links: tuple[Link, ...] = Field(
        (),
        description="each one way; between two ranks it goes before one between their clusters, "
        "and without either messages take no time",
    )
    fused_backward: bool = Field(
        False, description="of stages that do not say: B in place of I and W"
    )
    layers: tuple[Layer, ...] = Field(
        (), description="in place of stages, in model order; the planner makes stages of them"
    )
    num_stages_per_rank: int | None = Field(
        None, gt=0, description="with layers: the placement's; default: searched"
    )
    max_sub_blocks: int = Field(
        1,
        ge=1,
        le=MAX_SUB_BLOCKS,
        description="ops may be split in as many parts; crosspipe-greedy does it",
    )

    @model_validator(mode="after")
    def _stages_or_layers(self) -> Problem:
        if bool(self.stages) == bool(self.layers):
            raise ValueError("give either stages or layers")
        for index, stage in enumerate(self.stages):
            if stage.rank >= len(self.ranks):
                raise ValueError(
                    f"stages.{index}.rank: no rank {stage.rank}; "
                    f"ranks are 0 to {len(self.ranks) - 1}"
                )
        unused = set(range(len(self.ranks))) - {stage.rank for stage in self.stages}
        if self.stages and unused:
            raise ValueError(f"rank {min(unused)} has no stage")
        return self

    @model_validator(mode="after")
    def _links_have_ends(self) -> Problem:
        clusters = {rank.cluster for rank in self.ranks}
        for index, link in enumerate(self.links):
            if isinstance(link.src, str) != isinstance(link.dst, str):
                raise ValueError(
                    f"links.{index}: src and dst must both be ranks or both be clusters"
                )
            for end in (link.src, link.dst):
                if isinstance(end, str) and end not in clusters:
                    raise ValueError(
                        f"links.{index}: no cluster '{end}'; there are {sorted(clusters)}"
                    )
                if isinstance(end, int) and not 0 <= end < len(self.ranks):
                    raise ValueError(
                        f"links.{index}: no rank {end}; ranks are 0 to {len(self.ranks) - 1}"
                    )
        return self

    @model_validator(mode="after")
    def _links_are_given_once(self) -> Problem:
        known: set[tuple[int | str, int | str]] = set()
        for index, link in enumerate(self.links):
            if (link.src, link.dst) in known:
                raise ValueError(f"links.{index}: {link.src}->{link.dst} is given twice")
            known.add((link.src, link.dst))
        return self

    @cached_property
    def rank_of_stage(self) -> tuple[int, ...]:
        """Rank of each stage."""
        return tuple(stage.rank for stage in self.stages)

    @cached_property
    def stages_of_rank(self) -> tuple[tuple[int, ...], ...]:
        """Stages of each rank, in model order."""
        held: list[list[int]] = [[] for _ in self.ranks]
        for index, stage in enumerate(self.stages):
            held[stage.rank].append(index)
        return tuple(tuple(stages) for stages in held)

    @property
    def least_num_ops(self) -> int:
        """Fewest compute ops of a schedule: each stage and microbatch has F and B."""
        return 2 * self.num_microbatches * max(len(self.stages), len(self.ranks))

    def is_fused(self, stage: int) -> bool:
        """Whether the stage's backward is one op B by the problem's own word."""
        own = self.stages[stage].fused_backward
        return self.fused_backward if own is None else own

    def with_links(self, links: Sequence[Link]) -> Problem:
        """The same problem on other links."""
        return self.model_copy(update={"links": tuple(links)})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Problem:
        """A copy with other fields, without what was derived from the old ones."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("rank_of_stage", "stages_of_rank", "sha256"):
            copied.__dict__.pop(name, None)
        return copied

    @cached_property
    def sha256(self) -> str:
        """Digest of all that is not a default, independent of how it was written."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_problem(path: Path) -> Problem:
    """Reads a problem file.

    Raises:
        ProblemError: one line that names the file and the field.
    """
    raw = read_json(path, error=ProblemError)
    if isinstance(raw, dict) and "problem_sha256" in raw:
        raise ProblemError(f"{path}: a plan, no problem; the problem that it is for stands in it")
    return parse_model(Problem, raw, source=str(path), error=ProblemError)


def problem_json(problem: Problem) -> dict[str, object]:
    """The problem as JSON data, without the defaults."""
    return {"version": 1, **problem.model_dump(mode="json", exclude_defaults=True)}
