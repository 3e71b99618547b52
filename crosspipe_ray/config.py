"""The one YAML that describes a run: model, data, training, cluster and planner.

Every field is written once, here, with its unit in its name; ``--set a.b=c`` overrides any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from crosspipe_ray.carriers import MAX_STREAMS, TransportWish, Wish
from crosspipe_ray.codec import CodecKind
from crosspipe_ray.errors import ConfigError
from crosspipe_ray.parsing import parse_model, parse_yaml, read_yaml
from crosspipe_ray.planners.seeds import MAX_SEED

_MAX_PORT = 65535


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """A decoder of the Llama family.

    As pipeline layers it is ``[embedding, block 0, ..., block num_layers - 1, norm and head]``.
    """

    vocab_size: int | None = Field(None, gt=0, description="default: the tokenizer's")
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_layers: int = Field(gt=0, description="decoder blocks")
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    tie_embeddings: bool = False

    @property
    def num_pipeline_layers(self) -> int:
        """Embedding, blocks, and norm with head: what a placement cuts into stages."""
        return self.num_layers + 2

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError("hidden_size must be num_heads times an even head size")
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads must be a multiple of num_kv_heads")
        return self


class DataConfig(Section):
    """Tokens made by ``crosspipe data prepare``."""

    path: Path = Field(description="folder that `crosspipe data prepare` wrote")
    sequence_length: int = Field(gt=0, description="tokens per sequence")


class TrainingConfig(Section):
    """What one step is and how the optimizer moves."""

    num_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="sequences per step")
    num_microbatches: int = Field(gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="cosine ends at this share of it"
    )
    num_warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    gradient_clip_norm: float | None = Field(1.0, gt=0, description="null: no clipping")
    num_evaluation_microbatches: int = Field(
        8, ge=0, description="held-out microbatches; 0: no evaluation"
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    num_threads: int = Field(
        1, gt=0, description="intra-op threads per rank; CPU sums change with it"
    )

    @property
    def microbatch_size(self) -> int:
        """Sequences per microbatch."""
        return self.batch_size // self.num_microbatches

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingConfig:
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by "
                f"num_microbatches {self.num_microbatches}"
            )
        return self


class RegionConfig(Section):
    """A group of ranks behind fast links."""

    name: str = Field(min_length=1)
    num_ranks: int = Field(gt=0)
    memory_limit_bytes: int | None = Field(None, gt=0, description="per rank; default: no limit")


class LinkConfig(Section):
    """A slow link between two regions."""

    src: str
    dst: str
    latency_us: float = Field(0.0, ge=0)
    bandwidth_bytes_per_s: float | None = Field(None, gt=0, description="default: no occupancy")
    jitter_us: float = Field(
        0.0, ge=0, description="emulated links only: each message waits up to this longer"
    )
    both_ways: bool = True
    codec: Literal["none", CodecKind] = Field(
        "none", description="of what crosses the link; anything but none changes the numerics"
    )
    transport: TransportWish | None = Field(None, description="default: the cluster's")
    num_streams: int | None = Field(
        None, ge=1, le=MAX_STREAMS, description="default: the cluster's"
    )

    @model_validator(mode="after")
    def _only_streams_are_counted(self) -> LinkConfig:
        if self.num_streams is not None and self.transport in ("collective", "object_store"):
            raise ValueError(
                f"num_streams {self.num_streams}: only with transport 'streams' or 'auto'"
            )
        return self

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """The pairs of regions that it is for."""
        there = (self.src, self.dst)
        both_ways = self.both_ways and self.src != self.dst
        return (there, there[::-1]) if both_ways else (there,)


class ClusterConfig(Section):
    """Where the ranks are, in pipeline order, and what lies between them."""

    regions: tuple[RegionConfig, ...] = Field(min_length=1)
    links: tuple[LinkConfig, ...] = ()
    link_profile: Path | None = Field(
        None, description="file of `crosspipe probe`: plan with its links in place of these"
    )
    allow_old_link_profile: bool = Field(False, description="take it even when beyond its limit")
    region_label: str = Field("region", description="Ray node label that holds the region's name")
    transport: TransportWish = Field(
        "collective",
        description="'auto': the fastest of the link profile between regions, collective elsewhere",
    )
    num_streams: int | None = Field(
        None,
        ge=1,
        le=MAX_STREAMS,
        description="connections per lane over streams; default: the fastest measured, else 8",
    )
    streams_port: int | None = Field(
        None, ge=1, le=_MAX_PORT, description="of rank 0, the next ones follow; default: any free"
    )
    emulate_links: bool = Field(
        False, description="inject the links' latency and bandwidth in the transport"
    )
    timeout_s: float = Field(
        120.0, gt=0, description="longest wait for a message before the run fails"
    )

    @model_validator(mode="after")
    def _regions_are_known(self) -> ClusterConfig:
        names = [region.name for region in self.regions]
        if len(set(names)) != len(names):
            raise ValueError(f"region names must differ, got {names}")
        for link in self.links:
            for end in (link.src, link.dst):
                if end not in names:
                    raise ValueError(
                        f"link {link.src}->{link.dst}: no region '{end}'; there are {names}"
                    )
        return self

    @model_validator(mode="after")
    def _links_are_given_once(self) -> ClusterConfig:
        directions = [direction for link in self.links for direction in link.directions]
        for src, dst in directions:
            if directions.count((src, dst)) > 1:
                raise ValueError(
                    f"links: {src}->{dst} is given twice; a link is both ways unless it says "
                    "both_ways: false"
                )
        return self

    @model_validator(mode="after")
    def _all_ranks_have_a_port(self) -> ClusterConfig:
        num_ranks = len(self.rank_regions)
        last = _MAX_PORT - num_ranks + 1
        if self.streams_port is not None and self.streams_port > last:
            raise ValueError(
                f"streams_port {self.streams_port}: {num_ranks} ranks take the ports from there "
                f"on, so at most {last}"
            )
        return self

    @property
    def rank_regions(self) -> tuple[str, ...]:
        """Region of each rank."""
        return tuple(region.name for region in self.regions for _ in range(region.num_ranks))

    def wish(self, src: str, dst: str) -> Wish:
        """What is to carry the messages from a region to another one, or to itself."""
        link = next((link for link in self.links if (src, dst) in link.directions), None)
        transport, num_streams = self.transport, self.num_streams
        if link is not None:
            transport = link.transport or transport
            num_streams = link.num_streams or num_streams
        return Wish(transport, num_streams)


class PlannerConfig(Section):
    """How the schedule is chosen."""

    method: str = "auto"
    placement: Literal["auto", "one_per_rank", "wave", "loop", "region_wave", "region_loop"] = (
        "auto"
    )
    time_limit_s: float = Field(5.0, gt=0)
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of every search")
    pieces: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1,),
        min_length=1,
        description="of each microbatch, to choose from: each number is profiled and planned",
    )


class Config(Section):
    """A whole run."""

    version: Literal[1] = 1
    seed: int = Field(0, ge=0, description="of weights, batches and emulated jitter")
    output: Path = Field(Path("runs"), description="a new folder is made in it for every run")
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    cluster: ClusterConfig
    planner: PlannerConfig = PlannerConfig()

    def in_pieces(self, num_pieces: int) -> Config:
        """The same batches, every microbatch in so many pieces, and no number left to choose."""
        training = self.training.model_copy(
            update={
                "num_microbatches": num_pieces * self.training.num_microbatches,
                "num_evaluation_microbatches": num_pieces
                * self.training.num_evaluation_microbatches,
            }
        )
        planner = self.planner.model_copy(update={"pieces": (1,)})
        return self.model_copy(update={"training": training, "planner": planner})

    def in_microbatches(self, num_microbatches: int) -> Config:
        """In the pieces that come to so many microbatches; as it is if it may not be cut so."""
        for num_pieces in self.planner.pieces:
            if num_pieces * self.training.num_microbatches == num_microbatches:
                return self.in_pieces(num_pieces)
        return self

    @model_validator(mode="after")
    def _pieces_divide(self) -> Config:
        size = self.training.microbatch_size
        for num_pieces in self.planner.pieces:
            if size % num_pieces:
                raise ValueError(
                    f"planner.pieces: a microbatch of {size} sequences (training.batch_size / "
                    f"num_microbatches) is not divisible into {num_pieces}"
                )
        return self

    @model_validator(mode="after")
    def _codecs_save_something(self) -> Config:
        for index, link in enumerate(self.cluster.links):
            if link.codec == "bf16" and self.training.dtype == "bfloat16":
                raise ValueError(
                    f"cluster.links.{index}.codec: bf16 saves nothing where training.dtype is "
                    "bfloat16; use int8 or none"
                )
        return self


def load_config(path: Path, *, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's YAML.

    Args:
        path: the file.
        overrides: ``a.b=c`` each; the value is read as YAML.

    Raises:
        ConfigError: one line that names the file and the field, and the nearest key that exists.
    """
    raw = read_yaml(path, error=ConfigError)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with model, data, training and cluster")
    for override in overrides:
        _override(raw, override)
    return parse_model(Config, raw, source=str(path), error=ConfigError)


def dump_config(config: Config) -> str:
    """The configuration as YAML, every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE, as in training.num_steps=100")
    *parents, last = key.split(".")
    section: Any = raw
    for parent in parents:
        section = section.setdefault(parent, {}) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"--set {override}: '{'.'.join(parents)}' is no section")
    section[last] = parse_yaml(value, source=f"--set {override}", error=ConfigError)
