"""What would stop a run later, found out before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from crosspipe_ray.codec import CodecKind
from crosspipe_ray.config import Config
from crosspipe_ray.engine.link_codecs import codecs_of, planned_codecs
from crosspipe_ray.engine.planning import link_profile_of, patterns_of, problem_again
from crosspipe_ray.errors import ConfigError, InputError, PlanError
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import check_method, needed_pattern
from crosspipe_ray.problem import Problem
from crosspipe_ray.run_profile import RunProfile
from crosspipe_ray.topology import clusters_of
from crosspipe_ray.training.data import Split, TokenDataset, read_info


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


def check_before_start(config: Config, *, is_planned: bool = False) -> None:
    """Finds out, without starting anything, what would stop the run later.

    Args:
        config: of the run.
        is_planned: there is a plan, so that no links are needed to make one.

    Raises:
        InputError: too few layers for the ranks, too little data for a batch, a placement that does
            not go with tied embeddings or the planning method, no such planning method, or measured
            links that do not do.
    """
    patterns = patterns_of(config)
    check_method(config.planner.method)
    if not is_planned:
        _check_placement(config, patterns)
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


def _check_placement(config: Config, patterns: Sequence[Pattern]) -> None:
    """Refuses a method that needs a placement which may not be tried."""
    needed = needed_pattern(config.planner.method)
    if needed and needed not in patterns:
        names = " or ".join(f"'{each.value}'" for each in patterns)
        raise ConfigError(
            f"planner.method: {config.planner.method} needs the placement '{needed.value}', but "
            f"planner.placement (or model.tie_embeddings) allows only {names}"
        )


def _microbatches_by_split(config: Config) -> list[tuple[Split, int]]:
    training = config.training
    splits: list[tuple[Split, int]] = [("train", training.num_microbatches)]
    if training.num_evaluation_microbatches:
        splits.append(("validation", training.num_evaluation_microbatches))
    return splits


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


def check_fits(config: Config, problem: Problem) -> None:
    """Refuses a plan that was made for another run.

    Raises:
        PlanError: names what differs.
    """
    expected: list[tuple[str, object, object]] = [
        ("num_microbatches", problem.num_microbatches, config.training.num_microbatches),
        ("ranks", [rank.cluster for rank in problem.ranks], list(config.cluster.rank_regions)),
        ("layers", _layer_borders(problem), config.model.num_pipeline_layers),
        ("codecs", _named(planned_codecs(problem)), _named(codecs_of(config))),
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
    _check_carriers(
        config,
        problem,
        origin="the plan sends",
        remedy="set cluster.transport=auto to run it as it is",
    )


def check_profile_fits(config: Config, profile: RunProfile) -> None:
    """Refuses the profile of an earlier run that says nothing about this one.

    Raises:
        InputError: names what differs.
    """
    profile.check_fits(config)
    _check_carriers(
        config,
        problem_again(config, profile, link_profile_of(config)),
        origin="--profile: it was measured",
        remedy="give --links of that transport, or leave out --profile",
    )


def _check_carriers(config: Config, problem: Problem, *, origin: str, remedy: str) -> None:
    """Refuses a link over what the configuration does not want there; names it."""
    clusters = [rank.cluster for rank in problem.ranks]
    for link in problem.links:
        wish = config.cluster.wish(*clusters_of(clusters, link.src, link.dst))
        if link.carrier is not None and not wish.allows(link.carrier):
            raise PlanError(
                f"{origin} over {link.carrier} from {link.src} to {link.dst}, the config "
                f"asks for {wish}; {remedy}"
            )


def _named(codecs: Mapping[tuple[str, str], CodecKind]) -> str:
    """As in ``us->eu int8``."""
    named = (f"{src}->{dst} {kind}" for (src, dst), kind in sorted(codecs.items()))
    return ", ".join(named) or "(none)"


def _layer_borders(problem: Problem) -> int | str:
    """Number of layers, if the stages name all of them in order."""
    end = 0
    for index, stage in enumerate(problem.stages):
        if stage.layers is None or stage.layers[0] != end:
            return f"(stages.{index}.layers is {stage.layers}, expected to start at {end})"
        end = stage.layers[1]
    return end
