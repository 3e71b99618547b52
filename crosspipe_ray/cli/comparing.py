"""Commands that hold methods against each other: compare, bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.cli.plans import Iterations, Seed, TimeLimit, console_of_stdout, names_of

if TYPE_CHECKING:
    from crosspipe_ray.planners.portfolio import Attempt

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Markdown file to write.")]


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    app.command()(compare)
    bench = typer.Typer(
        help="Benchmarks that anyone can repeat.", no_args_is_help=True, rich_markup_mode=None
    )
    bench.command("paper-tables")(paper_tables)
    app.add_typer(bench, name="bench")


def compare(
    problem_file: Annotated[Path, typer.Argument(metavar="PROBLEM.json")],
    methods: Annotated[str | None, typer.Option(help="Names by comma; default: all.")] = None,
    time_limit: TimeLimit = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    svg: Annotated[Path | None, typer.Option(help="Also draw them on one axis.")] = None,
    output: Output = None,
) -> None:
    """Compare methods on one problem."""
    from rich.console import Console

    from crosspipe_ray.files import check_folders, write_atomically
    from crosspipe_ray.planners.comparison import compare as compare_methods
    from crosspipe_ray.planners.portfolio import METHODS, Budget
    from crosspipe_ray.problem import read_problem
    from crosspipe_ray.report.console import attempts_table, planning_line
    from crosspipe_ray.report.markdown import attempts_markdown

    check_folders(svg, output)
    names = names_of(methods) if methods else tuple(METHODS)
    its_problem = read_problem(problem_file)
    with planning_line(Console(stderr=True)) as show_progress:
        budget = Budget.asked(time_limit, iterations, seed, on_progress=show_progress)
        attempts = compare_methods(its_problem, methods=names, budget=budget)
    console_of_stdout().print(attempts_table(attempts))
    if svg:
        write_atomically(svg, _picture(attempts, problem_file.name))
    if output:
        text = attempts_markdown(attempts)
        write_atomically(output, f"# Methods on {problem_file.name}\n\n{text}")


def paper_tables(
    table: Annotated[int | None, typer.Option(min=5, max=6, help="Default: both.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for a plan; default: 1, or no end with --iterations."),
    ] = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Tables 5 and 6 of CrossPipe: its figures beside what our plans take on the clock."""
    from crosspipe_ray.benchmarks.paper_tables import published_points, report_lines, rows
    from crosspipe_ray.files import check_folders, write_atomically
    from crosspipe_ray.planners.portfolio import Budget

    check_folders(output)
    points = [point for point in published_points() if table in (None, point.table)]
    budget = Budget.asked(time_limit, iterations, seed, default_s=1.0)
    pieces = []
    for piece in report_lines(rows(points, budget)):
        typer.echo(piece, nl=False)
        pieces.append(piece)
    if output:
        write_atomically(output, "# The tables of CrossPipe\n" + "".join(pieces))


def _picture(attempts: Sequence[Attempt], title: str) -> str:
    from crosspipe_ray.report.svg import timeline_svg

    plans = [(attempt.method, attempt.plan) for attempt in attempts if attempt.plan]
    clusters = [rank.cluster for rank in plans[0][1].problem.ranks]
    panels = [(method, plan.timeline) for method, plan in plans]
    return timeline_svg(panels, clusters=clusters, title=title)
