"""From a plan to what every rank has to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crosspipe_ray.config import Config
from crosspipe_ray.engine.checks import check_fits
from crosspipe_ray.engine.link_codecs import codecs_of
from crosspipe_ray.engine.measure import LayerCosts, profile_layers
from crosspipe_ray.engine.training_rank import Assignment
from crosspipe_ray.lowering import lower
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.fixed import forward_only
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Program
from crosspipe_ray.simulate import simulate

_PROFILE_S = 4.0


def profile_run(config: Config, *, device: torch.device) -> list[LayerCosts]:
    """Measures the layers of a run on this rank, over and over for a few seconds.

    All ranks do so at once and none stops early, so where they share cores, each one measures what
    is left to it.
    """
    torch.set_num_threads(config.training.num_threads)
    return profile_layers(
        config.model,
        microbatch_size=config.training.microbatch_size,
        sequence_length=config.data.sequence_length,
        dtype=getattr(torch, config.training.dtype),
        device=device,
        least_s=_PROFILE_S,
        codecs=sorted(set(codecs_of(config).values())),
    )


def assignments(config: Config, plan: Plan) -> tuple[Assignment, ...]:
    """What each rank has to do to train by a plan.

    Raises:
        PlanError: the plan does not fit the configuration.
    """
    check_fits(config, plan.problem)
    programs = lower(plan.problem, plan.timeline)
    evaluations = _evaluation_programs(config, plan.problem)
    return tuple(
        Assignment(config, plan.problem, program, evaluation)
        for program, evaluation in zip(programs, evaluations, strict=True)
    )


def _evaluation_programs(config: Config, problem: Problem) -> Sequence[Program | None]:
    num_microbatches = config.training.num_evaluation_microbatches
    if not num_microbatches:
        return [None] * len(problem.ranks)
    shorter = problem.model_copy(update={"num_microbatches": num_microbatches})
    return lower(shorter, simulate(shorter, forward_only(shorter)))
