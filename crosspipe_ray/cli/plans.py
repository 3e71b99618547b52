"""Commands about what is there: simulate, show, export, schema. None needs torch or ray."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.planners.seeds import MAX_SEED

if TYPE_CHECKING:
    from rich.console import Console

    from crosspipe_ray.plan import Plan
    from crosspipe_ray.problem import Problem
    from crosspipe_ray.timeline import Timeline

Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")]
TimeLimit = Annotated[
    float | None,
    typer.Option(min=0, help="Seconds for a plan; default: 5, or no end with --iterations."),
]
Iterations = Annotated[
    int | None,
    typer.Option(min=1, help="Attempts per search; with no time limit, plans can be made again."),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of every search.")]


class ExportFormat(str, Enum):
    """Formats of other programs."""

    TORCH_CSV = "torch-csv"


class SchemaName(str, Enum):
    """File formats with a schema."""

    PROBLEM = "problem"
    PLAN = "plan"
    CONFIG = "config"


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    for command in (simulate, show, export, schema):
        app.command()(command)


def simulate(
    file: Annotated[Path, typer.Argument(metavar="PLAN|PROBLEM.json")],
    schedule: Annotated[
        Path | None, typer.Option(help="CSV of compute ops to run on a PROBLEM.json.")
    ] = None,
) -> None:
    """Run a plan, or a schedule CSV against a problem, on the clock."""
    timeline, its_problem = _timeline_of(file, schedule)
    _print_ranks(console_of_stdout(), timeline, its_problem)


def show(
    file: Annotated[Path, typer.Argument(metavar="PLAN")],
    svg: Annotated[Path | None, typer.Option(help="Also draw a picture.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Also write a Perfetto trace.")] = None,
) -> None:
    """Show a plan's timeline."""
    from crosspipe_ray.files import check_folders, write_atomically
    from crosspipe_ray.links.choice import named_carriers
    from crosspipe_ray.plan import read_plan
    from crosspipe_ray.report.svg import timeline_svg
    from crosspipe_ray.report.text import timeline_text
    from crosspipe_ray.report.trace import trace_events

    check_folders(svg, trace)
    chosen = read_plan(file)
    clusters = [rank.cluster for rank in chosen.problem.ranks]
    panels = [(chosen.method, chosen.timeline)]
    console = console_of_stdout()
    has_colour = console.color_system is not None
    console.print(
        timeline_text(chosen.timeline, clusters=clusters, width=console.width, colour=has_colour)
    )
    for link, carrier in named_carriers(chosen.problem).items():
        console.print(f"link {link}: {carrier}", highlight=False)
    print_codecs(console, chosen)
    if svg:
        write_atomically(svg, timeline_svg(panels, clusters=clusters, title=file.name))
    if trace:
        write_atomically(trace, json.dumps(trace_events(panels, clusters=clusters)))


def export(
    file: Annotated[Path, typer.Argument(metavar="PLAN")],
    format_: Annotated[ExportFormat, typer.Option("--format")] = ExportFormat.TORCH_CSV,
    output: Output = None,
) -> None:
    """Write a plan's compute ops for another program."""
    from crosspipe_ray.errors import ScheduleError
    from crosspipe_ray.files import check_folders
    from crosspipe_ray.plan import read_plan
    from crosspipe_ray.schedule_csv import to_csv

    assert format_ is ExportFormat.TORCH_CSV, "the only format"
    check_folders(output)
    order = read_plan(file).schedule
    try:
        text = to_csv(order)
    except ScheduleError as error:
        raise ScheduleError(f"{file}: {error}") from None
    write_or_print(text, output)


def schema(name: Annotated[SchemaName, typer.Argument()]) -> None:
    """Print the JSON schema of a file format."""
    from pydantic import BaseModel

    from crosspipe_ray.config import Config
    from crosspipe_ray.plan_format import PlanFile
    from crosspipe_ray.problem import Problem

    models: dict[SchemaName, type[BaseModel]] = {
        SchemaName.PROBLEM: Problem,
        SchemaName.PLAN: PlanFile,
        SchemaName.CONFIG: Config,
    }
    typer.echo(json.dumps(models[name].model_json_schema(), indent=2))


def names_of(by_comma: str) -> tuple[str, ...]:
    """What stands between the commas of an option."""
    return tuple(name.strip() for name in by_comma.split(","))


def write_or_print(text: str, output: Path | None) -> None:
    """Where a command's result goes."""
    from crosspipe_ray.files import write_atomically

    if output:
        write_atomically(output, text)
    else:
        typer.echo(text, nl=False)


def print_codecs(console: Console, chosen: Plan) -> None:
    """Says what the codecs of a plan save, if it has any."""
    from crosspipe_ray.report.codec_savings import codecs_line

    line = codecs_line(chosen)
    if line:
        console.print(f"codecs: {line}", highlight=False)


def console_of_stdout() -> Console:
    """Where results go; lines are not broken."""
    from rich.console import Console

    return Console(soft_wrap=True)


def _timeline_of(file: Path, schedule: Path | None) -> tuple[Timeline, Problem]:
    from crosspipe_ray.errors import ScheduleError
    from crosspipe_ray.plan import read_plan
    from crosspipe_ray.problem import read_problem
    from crosspipe_ray.rules import validate
    from crosspipe_ray.schedule_csv import read_csv
    from crosspipe_ray.simulate import simulate as run

    if schedule is None:
        chosen = read_plan(file)
        return chosen.timeline, chosen.problem
    its_problem, order = read_problem(file), read_csv(schedule)
    try:
        validate(its_problem, order)
        return run(its_problem, order), its_problem
    except ScheduleError as error:
        raise ScheduleError(f"{schedule}: {error}", error.grid) from None


def _print_ranks(console: Console, timeline: Timeline, its_problem: Problem) -> None:
    from rich.table import Table

    from crosspipe_ray.report.console import format_bytes

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("rank", "cluster", "busy", "idle", "peak memory", "peak messages"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    busy_ns, idle_ns = timeline.busy_ns, timeline.idle_ns
    for rank, each in enumerate(its_problem.ranks):
        table.add_row(
            str(rank),
            each.cluster,
            f"{busy_ns[rank] / 1e6:.3f} ms",
            f"{idle_ns[rank] / 1e6:.3f} ms",
            format_bytes(timeline.peak_memory_bytes[rank]),
            format_bytes(timeline.peak_message_bytes[rank]),
        )
    console.print(table)
    console.print(
        f"makespan {timeline.makespan_ns / 1e6:.3f} ms, bubble {timeline.bubble_ratio:.2%}, "
        f"{len(timeline.sends)} timed messages",
        highlight=False,
    )
