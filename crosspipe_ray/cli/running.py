"""Commands that run something: data prepare, rehearse, train."""

from __future__ import annotations

import json
from enum import Enum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.carriers import MAX_STREAMS, Wish
from crosspipe_ray.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosspipe_ray.plan import Plan
    from crosspipe_ray.timeline import Timeline

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster, HOST:PORT or auto; default: nodes on this machine."),
]


class TransportName(str, Enum):
    """Transports between actors."""

    COLLECTIVE = "collective"
    OBJECT_STORE = "object_store"
    STREAMS = "streams"


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    data = typer.Typer(help="Tokens to train on.", no_args_is_help=True, rich_markup_mode=None)
    data.command()(prepare)
    app.add_typer(data, name="data")
    app.command()(rehearse)
    app.command()(train)


def prepare(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Text files or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    tokenizer: Annotated[
        str, typer.Option(help="'bytes', or a Hugging Face tokenizer.json (extra 'hf').")
    ] = "bytes",
    validation_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the documents that is held out.")
    ] = 0.05,
) -> None:
    """Turn text into memory-mapped tokens."""
    from crosspipe_ray.training.prepare import prepare as prepare_tokens
    from crosspipe_ray.training.tokens import load_tokenizer

    info = prepare_tokens(
        paths,
        output,
        tokenizer=load_tokenizer(tokenizer),
        validation_fraction=validation_fraction,
    )
    typer.echo(
        f"{info.train.num_tokens:,} training and {info.validation.num_tokens:,} held-out tokens in "
        f"{output} (unigram entropy {info.unigram_entropy_nats:.3f} nats, "
        f"{info.num_skipped_files} files skipped)"
    )


def rehearse(
    plan: Annotated[Path, typer.Argument(metavar="PLAN")],
    steps: Annotated[int, typer.Option(min=1, help="How often the plan is run.")] = 3,
    transport: Annotated[
        TransportName | None, typer.Option(help="For all links; default: what the plan names.")
    ] = None,
    num_streams: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STREAMS, help="Per lane, with --transport streams; default 8."),
    ] = None,
    emulate_links: Annotated[
        bool, typer.Option(help="Inject the problem's links; off where the links are real.")
    ] = True,
    address: Address = None,
    region_label: Annotated[str, typer.Option(help="Node label with a cluster's name.")] = "region",
    svg: Annotated[Path | None, typer.Option(help="Draw planned over measured.")] = None,
    corrected: Annotated[
        Path | None,
        typer.Option(
            metavar="PROBLEM.json",
            help="Write the plan's problem with the links as the messages saw them: to plan anew.",
        ),
    ] = None,
) -> None:
    """Run a plan on real actors and links, with stages that only sleep."""
    if corrected and emulate_links:
        raise InputError(
            "--corrected: emulated links are what the plan says; rehearse with --no-emulate-links"
        )
    if num_streams and transport is not TransportName.STREAMS:
        raise InputError("--num-streams: only --transport streams has them; give both")
    from crosspipe_ray.files import check_folders
    from crosspipe_ray.plan import read_plan
    from crosspipe_ray.report.console import rehearsed_line
    from crosspipe_ray.report.prediction import rehearsal_markdown

    check_folders(svg, corrected)
    chosen = read_plan(plan)  # before Ray is imported: a bad plan is refused at once
    from crosspipe_ray.actors.rehearsal import rehearse as run

    number = count(1)
    done = run(
        chosen,
        num_steps=steps,
        carrier=Wish(transport.value, num_streams).unmeasured if transport else None,
        address=address,
        region_label=region_label,
        emulate_links=emulate_links,
        on_step=lambda measured: typer.echo(
            rehearsed_line(next(number), chosen.timeline, measured)
        ),
    )
    typer.echo(rehearsal_markdown(chosen, done.timelines, done.clocks))
    if corrected:
        _write_corrected(chosen, done.timelines, corrected)
    if svg:
        _draw(chosen, done.timelines[-1], svg, title=plan.name)


def _write_corrected(chosen: Plan, measured: Sequence[Timeline], output: Path) -> None:
    from crosspipe_ray.files import json_text, write_atomically
    from crosspipe_ray.links.correction import corrected_links
    from crosspipe_ray.problem import problem_json

    better = corrected_links(chosen.problem, measured)
    write_atomically(output, json_text(problem_json(better)))


def _draw(chosen: Plan, measured: Timeline, output: Path, *, title: str) -> None:
    from crosspipe_ray.files import write_atomically
    from crosspipe_ray.report.svg import timeline_svg

    clusters = [rank.cluster for rank in chosen.problem.ranks]
    panels = [("planned", chosen.timeline), ("measured", measured)]
    write_atomically(output, timeline_svg(panels, clusters=clusters, title=title))


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As in training.num_steps=9."),
    ] = None,
    address: Address = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PLAN", help="Train by it; default: profile and plan."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Plan by what this earlier run measured (its folder)."),
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option(metavar="LINKS.json", help="Plan with what `crosspipe probe` measured."),
    ] = None,
    allow_old: Annotated[
        bool, typer.Option("--allow-old", help="Take these links even beyond their limit.")
    ] = False,
) -> None:
    """Profile, plan and train; leave a folder with everything."""
    from rich.console import Console

    from crosspipe_ray.config import load_config
    from crosspipe_ray.report.console import RunConsole

    if plan and profile:
        raise InputError("--profile: a plan is made from it, and --plan gives one; choose")
    overrides = list(overrides or ())
    if links:
        overrides.append(f"cluster.link_profile={json.dumps(str(links))}")
    if allow_old:
        overrides.append("cluster.allow_old_link_profile=true")
    run = load_config(config, overrides=overrides)  # likewise
    from crosspipe_ray.training.trainer import train as run_training

    console = RunConsole(Console())
    run_training(run, console, address=address, plan_file=plan, profile_file=profile)
