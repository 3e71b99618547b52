"""Commands that run something: data prepare, rehearse, train."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster, HOST:PORT or auto; default: nodes on this machine."),
]


class TransportName(str, Enum):
    """Transports between actors."""

    COLLECTIVE = "collective"
    OBJECT_STORE = "object_store"


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
    transport: Annotated[TransportName, typer.Option()] = TransportName.COLLECTIVE,
    emulate_links: Annotated[
        bool, typer.Option(help="Inject the problem's links; off where the links are real.")
    ] = True,
    address: Address = None,
    region_label: Annotated[str, typer.Option(help="Node label with a cluster's name.")] = "region",
    svg: Annotated[Path | None, typer.Option(help="Draw planned over measured.")] = None,
) -> None:
    """Run a plan on real actors and links, with stages that only sleep."""
    from crosspipe_ray.files import write_atomically
    from crosspipe_ray.plan import read_plan
    from crosspipe_ray.report.console import rehearsed_line
    from crosspipe_ray.report.prediction import predictions, predictions_markdown
    from crosspipe_ray.report.svg import timeline_svg

    chosen = read_plan(plan)  # before Ray is imported: a bad plan is refused at once
    from crosspipe_ray.actors.rehearsal import rehearse as run

    timelines = []
    for measured in run(
        chosen,
        num_steps=steps,
        transport=transport.value,
        address=address,
        region_label=region_label,
        emulate_links=emulate_links,
    ):
        timelines.append(measured)
        typer.echo(rehearsed_line(len(timelines), chosen.timeline, measured))
    clusters = [rank.cluster for rank in chosen.problem.ranks]
    typer.echo(predictions_markdown(predictions(chosen.timeline, timelines, clusters=clusters)))
    if svg:
        panels = [("planned", chosen.timeline), ("measured", timelines[-1])]
        write_atomically(svg, timeline_svg(panels, clusters=clusters, title=plan.name))


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

    overrides = list(overrides or ())
    if links:
        overrides.append(f"cluster.link_profile={json.dumps(str(links))}")
    if allow_old:
        overrides.append("cluster.allow_old_link_profile=true")
    run = load_config(config, overrides=overrides)  # likewise
    from crosspipe_ray.training.trainer import train as run_training

    run_training(run, RunConsole(Console()), address=address, plan_file=plan)
