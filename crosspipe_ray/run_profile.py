"""The profile of a run: what its layers, ops and links cost, when that was measured, and for what.

A run writes two: ``profile.json``, which its plan was made from, and ``next_profile.json``, the
same corrected by what the run measured; another run may start from that (``--profile``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from crosspipe_ray.config import Config, ModelConfig
from crosspipe_ray.correction import (
    corrected_layers,
    corrected_stages,
    op_times_us,
    relative_deviation,
)
from crosspipe_ray.errors import InputError
from crosspipe_ray.files import json_text, write_atomically
from crosspipe_ray.links.correction import corrected_links
from crosspipe_ray.ops import Kind
from crosspipe_ray.parsing import parse_model, read_json
from crosspipe_ray.problem import Problem, Record
from crosspipe_ray.timeline import Timeline

PROFILE_NAME = "profile.json"
NEXT_PROFILE_NAME = "next_profile.json"


class Dispersion(Record):
    """Of the times of a layer: median absolute deviation over the median."""

    forward: float = Field(ge=0)
    backward_input: float = Field(ge=0)
    backward_weight: float = Field(ge=0)


class Workload(Record):
    """What costs depend on, besides the hosts."""

    model: ModelConfig
    sequence_length: int
    microbatch_size: int = Field(gt=0)
    dtype: str
    num_threads: int

    @classmethod
    def of(cls, config: Config) -> Workload:
        """That of a run."""
        training = config.training
        return cls(
            model=config.model,
            sequence_length=config.data.sequence_length,
            microbatch_size=training.microbatch_size,
            dtype=training.dtype,
            num_threads=training.num_threads,
        )

    @property
    def values(self) -> dict[str, object]:
        """By the names of the configuration's fields."""
        values = self.model_dump()
        model = values.pop("model")
        return {f"model.{name}": value for name, value in model.items()} | values


class RunProfile(Record):
    """What a plan is made from."""

    version: Literal[1] = 1
    measured_at: AwareDatetime
    source: Literal["profile", "run"] = Field(
        description="profile: a few microbatches before a run; run: corrected by all of its steps"
    )
    workload: Workload
    problem: Problem = Field(description="with the costs of every layer, not placed yet")
    dispersions: tuple[Dispersion, ...] = Field(description="by layer")

    @model_validator(mode="after")
    def _every_layer_was_measured(self) -> RunProfile:
        wanted = self.workload.model.num_pipeline_layers
        measured = {"problem.layers": self.problem.layers, "dispersions": self.dispersions}
        for name, each in measured.items():
            if len(each) != wanted:
                raise ValueError(f"{name}: has {len(each)} layers, the model {wanted}")
        return self

    def check_fits(self, config: Config) -> None:
        """Refuses a run that these costs say nothing about.

        Raises:
            InputError: names what differs.
        """
        own, other = Workload.of(config).values, self.workload.values
        own["regions of the ranks"] = ", ".join(config.cluster.rank_regions)
        other["regions of the ranks"] = ", ".join(rank.cluster for rank in self.problem.ranks)
        for name, wanted in own.items():
            if wanted != other[name]:
                raise InputError(
                    f"--profile: was measured for another run: {name} {other[name]}, "
                    f"this one's {wanted}"
                )


def profile_now(
    config: Config, problem: Problem, dispersions: Sequence[Sequence[float]]
) -> RunProfile:
    """What was measured just now.

    Args:
        config: of the run.
        problem: with the costs of every layer.
        dispersions: of F, I and W of every layer.
    """
    return RunProfile(
        measured_at=datetime.now(timezone.utc),
        source="profile",
        workload=Workload.of(config),
        problem=problem,
        dispersions=tuple(map(_dispersion, dispersions)),
    )


def next_profile(
    profile: RunProfile, placed: Problem, timelines: Sequence[Timeline], *, with_links: bool
) -> RunProfile:
    """The profile that the next run may start from.

    Args:
        profile: that the plan was made from.
        placed: the plan's problem, with stages of those layers.
        timelines: measured.
        with_links: correct these too; not where they are emulated, and known.
    """
    seen = corrected_stages(placed, timelines)
    if with_links:
        seen = corrected_links(seen, timelines)
    problem = profile.problem.model_copy(
        update={
            "layers": corrected_layers(profile.problem.layers, placed, seen),
            "ranks": seen.ranks,
            "links": seen.links,
        }
    )
    return profile.model_copy(
        update={
            "measured_at": datetime.now(timezone.utc),
            "source": "run",
            "problem": problem,
            "dispersions": _dispersions(profile, placed, timelines),
        }
    )


def read_run_profile(path: Path) -> RunProfile:
    """Reads the profile that a run has left.

    Args:
        path: a run's folder, or the file itself.

    Raises:
        InputError: one line that names the file and the field.
    """
    file = path / NEXT_PROFILE_NAME if path.is_dir() else path
    return parse_model(
        RunProfile, read_json(file, error=InputError), source=str(file), error=InputError
    )


def write_run_profile(profile: RunProfile, path: Path) -> None:
    """Writes a profile."""
    write_atomically(path, json_text(profile.model_dump(mode="json")))


def _dispersions(
    profile: RunProfile, placed: Problem, timelines: Sequence[Timeline]
) -> tuple[Dispersion, ...]:
    """Every layer has those of its stage."""
    times_us = op_times_us(timelines)
    result = list(profile.dispersions)
    for index, stage in enumerate(placed.stages):
        assert stage.layers is not None, "made of layers"
        kinds = (Kind.F, Kind.B, Kind.B) if (index, Kind.B) in times_us else tuple(Kind)[:3]
        seen = _dispersion([relative_deviation(times_us[index, kind]) for kind in kinds])
        first, end = stage.layers
        result[first:end] = [seen] * (end - first)
    return tuple(result)


def _dispersion(values: Sequence[float]) -> Dispersion:
    forward, backward_input, backward_weight = values
    return Dispersion(
        forward=forward, backward_input=backward_input, backward_weight=backward_weight
    )
