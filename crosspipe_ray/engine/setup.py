"""From a configuration and measured costs to what every rank has to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

import torch

from crosspipe_ray.config import ClusterConfig, Config
from crosspipe_ray.engine.measure import LayerCosts, profile_layers
from crosspipe_ray.engine.training_rank import Assignment
from crosspipe_ray.errors import ConfigError, InfeasibleError, InputError, PlanError
from crosspipe_ray.link_profile import LinkProfile, read_link_profile
from crosspipe_ray.lowering import Program, lower
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.fixed import forward_only
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import Attempt, Budget, check_method, plan
from crosspipe_ray.problem import Layer, Link, Problem, Rank
from crosspipe_ray.simulate import simulate
from crosspipe_ray.training.data import Split, TokenDataset, read_info

_MEASURED = (
    "forward_us", "backward_input_us", "backward_weight_us", "activation_bytes",
    "freed_by_backward_input_bytes", "output_bytes", "weight_bytes", "optimizer_bytes",
)  # fmt: skip


def complete(config: Config) -> Config:
    """Fills in what the dataset says: the size of the vocabulary.

    Raises:
        InputError: there is no dataset, or its vocabulary is larger than the model's.
    """
    vocab_size = read_info(config.data.path).vocab_size
    if config.model.vocab_size is None:
        model = config.model.model_copy(update={"vocab_size": vocab_size})
        return config.model_copy(update={"model": model})
    if config.model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is less than the {vocab_size} of the "
            f"tokens in {config.data.path}"
        )
    return config


def profile_run(config: Config, *, device: torch.device) -> list[LayerCosts]:
    """Measures the layers of a run on this rank."""
    torch.set_num_threads(config.training.num_threads)
    return profile_layers(
        config.model,
        microbatch_size=config.training.microbatch_size,
        sequence_length=config.data.sequence_length,
        dtype=getattr(torch, config.training.dtype),
        device=device,
    )


def problem_of(
    config: Config,
    profiles: Sequence[Sequence[LayerCosts]],
    link_profile: LinkProfile | None = None,
) -> Problem:
    """The planning problem of a run.

    Args:
        config: of the run.
        profiles: per rank, the costs of [embedding, block, norm and head]; the median rank counts,
            since a layer may come to lie on any of them.
        link_profile: measured links, in place of the configured ones.

    Raises:
        InputError: a link between two regions was not measured.
    """
    embedding, block, head = (_median_layer(kind) for kind in zip(*profiles, strict=True))
    cluster = config.cluster
    return Problem(
        num_microbatches=config.training.num_microbatches,
        ranks=tuple(
            Rank(cluster=region.name, memory_limit_bytes=region.memory_limit_bytes)
            for region in cluster.regions
            for _ in range(region.num_ranks)
        ),
        layers=(embedding, *[block] * config.model.num_layers, head),
        links=(
            link_profile.links_for(
                cluster.rank_regions,
                transport=cluster.transport,
                message_bytes=block.output_bytes,
            )
            if link_profile
            else links_of(cluster)
        ),
    )


def link_profile_of(config: Config) -> LinkProfile | None:
    """The measured links that a run is to be planned with, if it names any.

    Raises:
        InputError: the file is wrong or too old, or lacks a link between two regions of the run.
    """
    cluster = config.cluster
    if cluster.link_profile is None:
        return None
    profile = read_link_profile(cluster.link_profile, allow_old=cluster.allow_old_link_profile)
    profile.links_for(cluster.rank_regions, transport=cluster.transport)
    return profile


def links_of(cluster: ClusterConfig) -> tuple[Link, ...]:
    """Directed links between regions; all pairs of two regions share one channel per direction."""
    links = []
    for link in cluster.links:
        ends = (
            [(link.src, link.dst), (link.dst, link.src)]
            if link.both_ways
            else [(link.src, link.dst)]
        )
        for src, dst in ends:
            links.append(
                Link(
                    src=src,
                    dst=dst,
                    latency_us=link.latency_us,
                    bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
                )
            )
    return tuple(links)


def patterns_of(config: Config) -> tuple[Pattern, ...]:
    """Placements that the planner may try.

    Raises:
        ConfigError: a tied model whose first and last stage would be on different ranks.
    """
    chosen = config.planner.placement
    patterns = tuple(Pattern) if chosen == "auto" else (Pattern(chosen),)
    if not config.model.tie_embeddings or len(config.cluster.rank_regions) == 1:
        return patterns
    if Pattern.WAVE not in patterns:
        raise ConfigError(
            f"model.tie_embeddings: the first and the last stage must be on one rank, and "
            f"planner.placement '{chosen}' puts them apart; use 'wave', or false"
        )
    return (Pattern.WAVE,)


def plan_of(
    config: Config, problem: Problem, on_attempt: Callable[[Attempt], None] = lambda _: None
) -> Plan:
    """Plans a run as its configuration asks.

    Raises:
        InputError: the configuration asks for what cannot be.
        InfeasibleError: memory is too small.
    """
    planner = config.planner
    budget = Budget(time_limit_s=planner.time_limit_s, seed=planner.seed)
    return plan(
        problem,
        method=planner.method,
        budget=budget,
        patterns=patterns_of(config),
        on_attempt=on_attempt,
    )


def check_before_start(config: Config) -> None:
    """Finds out, without starting anything, what would stop the run later.

    Raises:
        InputError: too few layers for the ranks, too little data for a batch, a placement that does
            not go with tied embeddings, no such planning method, or measured links that do not do.
    """
    patterns_of(config)
    check_method(config.planner.method)
    link_profile_of(config)
    num_ranks, num_layers = len(config.cluster.rank_regions), config.model.num_pipeline_layers
    if num_ranks > num_layers:
        raise ConfigError(
            f"cluster.regions: {num_ranks} ranks need as many stages, but the model has "
            f"{num_layers} layers (embedding, {config.model.num_layers} blocks, head)"
        )
    for split, num_microbatches in _microbatches_by_split(config):
        dataset = TokenDataset(
            config.data.path, split=split, sequence_length=config.data.sequence_length
        )
        dataset.batches(
            batch_size=num_microbatches * config.training.microbatch_size,
            num_microbatches=num_microbatches,
            seed=config.seed,
        )


def _microbatches_by_split(config: Config) -> list[tuple[Split, int]]:
    training = config.training
    splits: list[tuple[Split, int]] = [("train", training.num_microbatches)]
    if training.num_evaluation_microbatches:
        splits.append(("validation", training.num_evaluation_microbatches))
    return splits


def one_f_one_b_makespan_ns(problem: Problem) -> int | None:
    """What 1F1B takes on the same costs and links; None where it does not fit."""
    try:
        return plan(problem, method="1f1b").timeline.makespan_ns
    except (InputError, InfeasibleError):
        return None


def check_same_data(digests: Iterable[str | None]) -> None:
    """Refuses a run whose first and last stage read different tokens.

    Raises:
        InputError: they do.
    """
    if len({digest for digest in digests if digest is not None}) > 1:
        raise InputError(
            "data.path: the ranks of the first and the last stage read different tokens; copy the "
            "same folder to both"
        )


def assignments(config: Config, plan: Plan) -> tuple[Assignment, ...]:
    """What each rank has to do to train by a plan.

    Raises:
        PlanError: the plan does not fit the configuration.
    """
    _check_fits(config, plan.problem)
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


def _check_fits(config: Config, problem: Problem) -> None:
    expected: list[tuple[str, object, object]] = [
        ("num_microbatches", problem.num_microbatches, config.training.num_microbatches),
        ("ranks", [rank.cluster for rank in problem.ranks], list(config.cluster.rank_regions)),
        ("layers", _layer_borders(problem), config.model.num_pipeline_layers),
    ]
    for what, planned, wanted in expected:
        if planned != wanted:
            raise PlanError(
                f"the plan is for another run: its {what} {planned}, the config's {wanted}"
            )
    last = problem.stages[-1].rank
    if config.model.tie_embeddings and problem.stages[0].rank != last:
        raise PlanError(
            "the plan puts the first and the last stage of a tied model on different ranks"
        )


def _layer_borders(problem: Problem) -> int | str:
    """Number of layers, if the stages name all of them in order."""
    end = 0
    for index, stage in enumerate(problem.stages):
        if stage.layers is None or stage.layers[0] != end:
            return f"(stages.{index}.layers is {stage.layers}, expected to start at {end})"
        end = stage.layers[1]
    return end


def _median_layer(measured: Sequence[LayerCosts]) -> Layer:
    """One layer's costs over all ranks."""
    values = {name: median(getattr(costs, name) for costs in measured) for name in _MEASURED}
    return Layer(
        **{name: value if name.endswith("_us") else round(value) for name, value in values.items()}
    )
