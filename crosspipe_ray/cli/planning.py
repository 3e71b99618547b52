"""Commands that make problems and plans: problem, plan. Neither needs torch nor ray."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.cli.plans import (
    Iterations,
    Output,
    Seed,
    TimeLimit,
    console_of_stdout,
    names_of,
    print_codecs,
    write_or_print,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from crosspipe_ray.plan import Plan
    from crosspipe_ray.planners.portfolio import Budget
    from crosspipe_ray.problem import Problem


class PlacementName(str, Enum):
    """Placements by their option values."""

    ONE_PER_RANK = "one_per_rank"
    WAVE = "wave"
    LOOP = "loop"
    REGION_WAVE = "region_wave"
    REGION_LOOP = "region_loop"


class CodecName(str, Enum):
    """Codecs of links."""

    NONE = "none"
    BF16 = "bf16"
    INT8 = "int8"


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    for command in (problem, plan):
        app.command()(command)


def problem(
    ranks: Annotated[int, typer.Option(min=1, help="Number of ranks.")],
    num_microbatches: Annotated[int, typer.Option(min=1)],
    clusters: Annotated[
        str | None, typer.Option(help="Names in pipeline order, by comma; default: us,eu.")
    ] = None,
    placement: Annotated[PlacementName, typer.Option()] = PlacementName.ONE_PER_RANK,
    stages_per_rank: Annotated[
        int | None, typer.Option(min=1, help="Default: 1, or 2 for waves and loops.")
    ] = None,
    forward_us: Annotated[float, typer.Option(min=0, help="Per rank.")] = 1000.0,
    backward_input_us: Annotated[float, typer.Option(min=0)] = 1000.0,
    backward_weight_us: Annotated[float, typer.Option(min=0)] = 1000.0,
    activation_bytes: Annotated[int, typer.Option(min=0, help="Per rank.")] = 4000,
    output_bytes: Annotated[int, typer.Option(min=0, help="Per message.")] = 1_000_000,
    latency_ratio: Annotated[float, typer.Option(min=0, help="T_lat / T_F between clusters.")] = 0,
    bandwidth_ratio: Annotated[float, typer.Option(min=0, help="T_bw / T_F between clusters.")] = 0,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Limit of each rank; 1 is what 1F1B's first one holds: as many microbatches as "
            "there are ranks. Default: none.",
        ),
    ] = None,
    codec: Annotated[CodecName, typer.Option(help="Of the links between clusters.")] = (
        CodecName.NONE
    ),
    output: Output = None,
) -> None:
    """Make a planning problem from a few numbers."""
    from crosspipe_ray.files import check_folders, json_text
    from crosspipe_ray.generator import Recipe, generate
    from crosspipe_ray.planners.placement import Pattern
    from crosspipe_ray.problem import problem_json

    check_folders(output)
    recipe = Recipe(
        num_ranks=ranks,
        num_microbatches=num_microbatches,
        clusters=("us", "eu")[:ranks] if clusters is None else names_of(clusters),
        pattern=Pattern(placement.value),
        num_stages_per_rank=stages_per_rank,
        forward_us=forward_us,
        backward_input_us=backward_input_us,
        backward_weight_us=backward_weight_us,
        activation_bytes=activation_bytes,
        output_bytes=output_bytes,
        latency_ratio=latency_ratio,
        bandwidth_ratio=bandwidth_ratio,
        memory=memory,
        codec=None if codec is CodecName.NONE else codec.value,
    )
    write_or_print(json_text(problem_json(generate(recipe))), output)


def plan(
    problem_file: Annotated[Path | None, typer.Argument(metavar="PROBLEM.json")] = None,
    method: Annotated[str, typer.Option(help="See --list-methods.")] = "auto",
    time_limit: TimeLimit = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Threads of the solver; its models that leave things out get one."
        ),
    ] = 1,
    quantile: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Plan for this share of steps of links with samples."),
    ] = None,
    pieces: Annotated[
        str,
        typer.Option(help="Of each microbatch and message, numbers to choose from: 1,2,4."),
    ] = "1",
    output: Output = None,
    list_methods: Annotated[bool, typer.Option(help="List the methods and stop.")] = False,
) -> None:
    """Plan a problem: the order of every op and message."""
    from crosspipe_ray.errors import ProblemError
    from crosspipe_ray.files import check_folders
    from crosspipe_ray.plan import check_can_hold, write_plan
    from crosspipe_ray.planners.portfolio import Budget
    from crosspipe_ray.planners.portfolio import plan as make_plan
    from crosspipe_ray.planners.robust import quantile_ns, robust_plan
    from crosspipe_ray.problem import read_problem

    if list_methods:
        _print_methods()
        return
    if problem_file is None:
        raise ProblemError("PROBLEM.json: missing; make one with `crosspipe problem`")
    check_folders(output)
    its_problem = read_problem(problem_file)
    numbers = _numbers(pieces, its_problem)
    if output:
        check_can_hold(output, max(numbers) * its_problem.least_num_ops)
    make, costs = make_plan, {}
    if quantile is not None:
        make = partial(robust_plan, quantile=quantile)
        costs = {f"p{100 * quantile:g}": partial(quantile_ns, quantile=quantile, seed=seed)}
    budget = Budget.asked(time_limit, iterations, seed, workers=workers)
    chosen = _planned(its_problem, numbers, partial(make, method=method), budget, costs)
    if output:
        write_plan(chosen, output)


def _planned(
    its_problem: Problem,
    pieces: Sequence[int],
    make: Callable[..., Plan],
    budget: Budget,
    costs: Mapping[str, Callable[[Plan], float]],
) -> Plan:
    """The plan of least cost, the makespan where none is given; prints what was tried."""
    from rich.console import Console

    from crosspipe_ray.planners.comparison import with_shared_bounds
    from crosspipe_ray.planners.pieces import makespan_ns, plan_in_pieces
    from crosspipe_ray.planners.portfolio import Attempt
    from crosspipe_ray.report.console import attempts_table, planning_line

    attempts: list[Attempt] = []
    with planning_line(Console(stderr=True)) as show_progress:
        number, chosen = plan_in_pieces(
            its_problem,
            pieces,
            make=make,
            budget=replace(budget, on_progress=show_progress),
            on_attempt=attempts.append,
            cost=next(iter(costs.values()), makespan_ns),
        )
    console = console_of_stdout()
    if len(attempts) > 1:
        console.print(attempts_table(with_shared_bounds(attempts), **costs))
    in_pieces = f"{number} piece{'s' * (number > 1)}" if len(pieces) > 1 else ""
    if in_pieces:
        console.print(f"the best has microbatches in {in_pieces}", highlight=False)
    of_what = " in ".join(filter(None, ["its placement" * bool(its_problem.layers), in_pieces]))
    _print_plan(console, chosen, of_what, costs)
    return chosen


def _numbers(by_comma: str, its_problem: Problem) -> tuple[int, ...]:
    """Numbers of pieces to choose from."""
    from crosspipe_ray.errors import ProblemError
    from crosspipe_ray.problem import MOST_MICROBATCHES

    names = names_of(by_comma)
    if not all(name.isdecimal() and int(name) for name in names):
        raise ProblemError(f"--pieces {by_comma}: give whole numbers from 1 on, as in 1,2,4")
    most = MOST_MICROBATCHES // its_problem.num_microbatches
    if max(map(int, names)) > most:
        raise ProblemError(
            f"--pieces {by_comma}: {its_problem.num_microbatches} microbatches may be in at most "
            f"{most} pieces each"
        )
    return tuple(sorted(set(map(int, names))))


def _print_methods() -> None:
    from crosspipe_ray.planners.portfolio import AUTO, METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        typer.echo(f"{method.name:{width}} {method.summary}")
    typer.echo(f"{AUTO:{width}} all of these that fit; the shortest wins")


def _print_plan(
    console: Console, chosen: Plan, of_what: str, costs: Mapping[str, Callable[[Plan], float]]
) -> None:
    timeline = chosen.timeline
    console.print(
        f"{chosen.method}: makespan {timeline.makespan_ns / 1e6:.3f} ms, "
        f"lower bound {chosen.lower_bound_ns / 1e6:.3f} ms ({_verdict(chosen, of_what)}), "
        f"bubble {timeline.bubble_ratio:.1%}, planned in {chosen.wall_s:.2f} s",
        highlight=False,
    )
    if chosen.p50_ns is not None and chosen.p95_ns is not None:
        wanted = {name: cost(chosen) for name, cost in costs.items()}
        quantiles = {"p50": chosen.p50_ns, "p95": chosen.p95_ns, **wanted}
        in_order = sorted(quantiles.items(), key=lambda item: float(item[0][1:]))
        values = ", ".join(f"{name} {time_ns / 1e6:.3f} ms" for name, time_ns in in_order)
        console.print(f"over sampled links: {values}", highlight=False)
    print_codecs(console, chosen)


def _verdict(chosen: Plan, of_what: str) -> str:
    """How far from the bound, and why the search ended.

    Args:
        chosen: the plan.
        of_what: what the planner chose besides the order; the bound is for that choice alone.
    """
    from crosspipe_ray.report.console import rounded_up

    scope = f" for {of_what}" if of_what else ""
    if chosen.status == "proven":
        return f"proven optimal{scope}"
    is_cut_short = chosen.status == "time_limit"
    return f"gap at most {rounded_up(chosen.gap, 2)}{scope}" + ", out of time" * is_cut_short
