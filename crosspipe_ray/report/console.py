"""What a run shows: one line per phase, one bar for the steps, the figures at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.timeline import Timeline


class RunConsole:
    """Prints a run's progress, on a terminal or into a log.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: tuple[Progress, TaskID] | None = None

    def phase(self, text: str) -> None:
        """A phase begins."""
        self._console.print(f"[bold]-[/bold] {text}", highlight=False)

    @contextmanager
    def steps(self, num_steps: int) -> Iterator[None]:
        """Shows a bar while the steps run; in a log, every tenth step."""
        columns = (
            TextColumn("  step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._bar = progress, progress.add_task("", total=num_steps, loss=float("nan"))
            yield
        self._bar = None

    def step(self, index: int, num_steps: int, loss: float) -> None:
        """A step is done."""
        if self._bar:
            progress, task = self._bar
            progress.update(task, completed=index + 1, loss=loss)
        if not self._console.is_terminal and (index % 10 == 0 or index + 1 == num_steps):
            self._console.print(f"  step {index + 1}/{num_steps}  loss {loss:.3f}", highlight=False)

    def attempts(self, attempts: Sequence[Attempt]) -> None:
        """What the planner tried, the best first."""
        self._console.print(attempts_table(attempts))

    def figures(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(f"[bold]{name}[/bold]", value)
        self._console.print(table, highlight=False)


def rehearsed_line(step: int, planned: Timeline, measured: Timeline) -> str:
    """One step of a rehearsal: what was planned and what it took."""
    planned_ms, measured_ms = planned.makespan_ns / 1e6, measured.makespan_ns / 1e6
    return (
        f"step {step}: planned {planned_ms:.2f} ms, measured {measured_ms:.2f} ms "
        f"({measured_ms / planned_ms - 1:+.2%}), bubble {measured.bubble_ratio:.1%}"
    )


def attempts_table(attempts: Sequence[Attempt]) -> Table:
    """Methods and placements by makespan, those that do not fit last."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method", no_wrap=True)
    table.add_column("placement", no_wrap=True)
    for column in ("makespan", "bubble", "peak memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column()  # gives way first on a narrow terminal
    for attempt in sorted(attempts, key=_makespan_ns):
        plan = attempt.plan
        if plan is None:
            reason = Text(str(attempt.error), no_wrap=True, overflow="ellipsis")
            table.add_row(attempt.method, attempt.placement, "-", "-", "-", reason)
            continue
        timeline = plan.timeline
        table.add_row(
            attempt.method,
            attempt.placement,
            f"{timeline.makespan_ns / 1e6:.2f} ms",
            f"{timeline.bubble_ratio:.1%}",
            format_bytes(max(timeline.peak_memory_bytes)),
            "proven" if plan.status == "proven" else f"gap <= {plan.gap:.1%}",
        )
    return table


def format_bytes(num_bytes: int) -> str:
    """Bytes for a person.

    >>> format_bytes(512), format_bytes(3_500_000)
    ('512 B', '3.5 MB')
    """
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{num_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _makespan_ns(attempt: Attempt) -> float:
    return attempt.plan.timeline.makespan_ns if attempt.plan else float("inf")
