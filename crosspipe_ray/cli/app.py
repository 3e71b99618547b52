"""The application: its commands, and how errors become one line and an exit code."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from crosspipe_ray import __version__
from crosspipe_ray.cli import comparing, network, planning, plans, running, wan
from crosspipe_ray.errors import CrosspipeError, ScheduleError

_INTERRUPTED = 130

app = typer.Typer(
    help="Train one model over GPUs in several regions: measure, plan, run, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
planning.add_commands(app)
plans.add_commands(app)
comparing.add_commands(app)
running.add_commands(app)
network.add_commands(app)
wan.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crosspipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 run failed, 2 bad input, 3 infeasible."""
    try:
        app()
    except CrosspipeError as error:
        _show(error)
        sys.exit(error.exit_code)
    except MemoryError as error:
        failure = CrosspipeError(f"this machine has too little memory for that: {error}")
        _show(failure)
        sys.exit(failure.exit_code)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # Typer's answer to Ctrl-C, which says nothing
            typer.echo("stopped", err=True)
        raise


def _show(error: CrosspipeError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
    if isinstance(error, ScheduleError) and error.grid:
        console.print(escape(error.grid), style="dim")
