"""From a configuration and measured costs to a problem, and to its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from statistics import median

from crosspipe_ray.config import ClusterConfig, Config
from crosspipe_ray.engine.codec_rates import CodecRates
from crosspipe_ray.engine.link_codecs import measured_rates, planned_rates, with_codecs
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.errors import ConfigError, InfeasibleError, InputError
from crosspipe_ray.links.choice import candidates_of, with_measured_links
from crosspipe_ray.links.profile import LinkProfile, read_link_profile
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.planners.portfolio import Attempt, Budget, plan
from crosspipe_ray.problem import Layer, Link, Problem, Rank
from crosspipe_ray.run_profile import RunProfile, profile_now

_MEASURED_TIMES = ("forward_us", "backward_input_us", "backward_weight_us")
_SIZES = (
    "activation_bytes", "freed_by_backward_input_bytes", "output_bytes", "weight_bytes",
    "optimizer_bytes",
)  # fmt: skip


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
    return _problem(
        config,
        (embedding, *[block] * config.model.num_layers, head),
        overheads_us=[layers[0].op_overhead_us for layers in profiles],
        rates=measured_rates(profiles),
        link_profile=link_profile,
    )


def profile_of(
    config: Config, profiles: Sequence[Sequence[LayerCosts]], link_profile: LinkProfile | None
) -> RunProfile:
    """What the ranks measured, as a run keeps it; arguments and errors as for `problem_of`."""
    embedding, block, head = (
        [median(spread) for spread in zip(*(costs.dispersion for costs in kind), strict=True)]
        for kind in zip(*profiles, strict=True)
    )
    return profile_now(
        config,
        problem_of(config, profiles, link_profile),
        (embedding, *[block] * config.model.num_layers, head),
    )


def problem_again(
    config: Config, profile: RunProfile, link_profile: LinkProfile | None = None
) -> Problem:
    """The planning problem of a run that starts from the profile of an earlier one.

    Its links count where they were measured: not before newer ones, nor where links are emulated.

    Args:
        config: of the new run; the profile fits it.
        profile: of the earlier run.
        link_profile: measured links, in place of all others.

    Raises:
        InputError: a link between two regions was not measured.
    """
    rates = tuple(planned_rates(profile.problem))
    problem = _problem(
        config,
        profile.problem.layers,
        overheads_us=[rank.op_overhead_us for rank in profile.problem.ranks],
        rates=rates,
        link_profile=link_profile,
    )
    if link_profile or config.cluster.emulate_links:
        return problem
    return with_codecs(problem.with_links(profile.problem.links), config, rates)


def _problem(
    config: Config,
    layers: tuple[Layer, ...],
    *,
    overheads_us: Sequence[float],
    rates: Iterable[CodecRates],
    link_profile: LinkProfile | None,
) -> Problem:
    cluster = config.cluster
    regions = [region for region in cluster.regions for _ in range(region.num_ranks)]
    problem = Problem(
        num_microbatches=config.training.num_microbatches,
        ranks=tuple(
            Rank(
                cluster=region.name,
                memory_limit_bytes=region.memory_limit_bytes,
                op_overhead_us=overhead_us,
            )
            for region, overhead_us in zip(regions, overheads_us, strict=True)
        ),
        layers=layers,
        links=links_of(cluster),
    )
    problem = with_codecs(problem, config, rates)
    return with_measured_links(problem, link_profile, cluster.wish) if link_profile else problem


def link_profile_of(config: Config) -> LinkProfile | None:
    """The measured links that a run is to be planned with, if it names any.

    Raises:
        InputError: the file is wrong or too old, or lacks a link between two regions of the run;
            or there is none, and a transport is to be chosen by it.
    """
    cluster = config.cluster
    if cluster.link_profile is None:
        _check_nothing_to_choose(cluster)
        return None
    profile = read_link_profile(cluster.link_profile, allow_old=cluster.allow_old_link_profile)
    candidates_of(profile, cluster.rank_regions, cluster.wish)
    return profile


def _check_nothing_to_choose(cluster: ClusterConfig) -> None:
    for src, dst in permutations([region.name for region in cluster.regions], 2):
        if cluster.wish(src, dst).transport == "auto":
            raise ConfigError(
                f"cluster.transport: 'auto' for {src}->{dst} chooses by measured links; give "
                "cluster.link_profile, or --links, a file of `crosspipe probe`"
            )


def links_of(cluster: ClusterConfig) -> tuple[Link, ...]:
    """Directed links between regions; all pairs of two regions share one channel per direction."""
    links = []
    for link in cluster.links:
        for src, dst in link.directions:
            carrier = cluster.wish(src, dst).unmeasured
            links.append(
                Link(
                    src=src,
                    dst=dst,
                    latency_us=link.latency_us,
                    bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
                    transport=carrier.transport,
                    streams=carrier.num_streams if carrier.transport == "streams" else None,
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


def one_f_one_b_makespan_ns(problem: Problem) -> int | None:
    """What 1F1B takes on the same costs and links; None where it does not fit."""
    try:
        return plan(problem, method="1f1b").timeline.makespan_ns
    except (InputError, InfeasibleError):
        return None


def _median_layer(measured: Sequence[LayerCosts]) -> Layer:
    """One layer's costs over all ranks; the fixed cost of an op is the rank's, not the layer's."""
    times_us = {
        name: median(max(0.0, getattr(costs, name) - costs.op_overhead_us) for costs in measured)
        for name in _MEASURED_TIMES
    }
    sizes = {name: round(median(getattr(costs, name) for costs in measured)) for name in _SIZES}
    return Layer(**times_us, **sizes)
