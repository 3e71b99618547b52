"""What a run shows: one line per phase, one bar for the steps, the figures at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.comparison import with_shared_bounds
from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.planners.progress import OnProgress
from crosspipe_ray.timeline import Timeline

ATTEMPT_COLUMNS = ("method", "placement", "makespan", "gap", "bubble", "peak memory", "seconds")
_ROUNDING = 1e-6  # of a share in floats


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
        """What came of each method, the best first; the summary has every placement."""
        ordered = sorted(with_shared_bounds(attempts), key=lambda attempt: attempt.makespan_ns)
        best = {attempt.method: attempt for attempt in reversed(ordered)}
        self._console.print(attempts_table(list(best.values())))

    def figures(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(f"[bold]{name}[/bold]", value)
        self._console.print(table, highlight=False)


@contextmanager
def planning_line(console: Console) -> Iterator[OnProgress]:
    """One line that says what the search at work has come to; nothing unless on a terminal."""
    with console.status("planning") as status:

        def show(makespan_ns: int, lower_bound_ns: int) -> None:
            gap = makespan_ns / lower_bound_ns - 1 if lower_bound_ns else 0.0
            status.update(
                f"planning: {makespan_ns / 1e6:.2f} ms so far, "
                f"bound {lower_bound_ns / 1e6:.2f} ms (gap {gap:.2%})"
            )

        yield show


def rehearsed_line(step: int, planned: Timeline, measured: Timeline) -> str:
    """One step of a rehearsal: what was planned and what it took."""
    planned_ms, measured_ms = planned.makespan_ns / 1e6, measured.makespan_ns / 1e6
    return (
        f"step {step}: planned {planned_ms:.2f} ms, measured {measured_ms:.2f} ms "
        f"({measured_ms / planned_ms - 1:+.2%}), bubble {measured.bubble_ratio:.1%}"
    )


def attempts_table(attempts: Sequence[Attempt], **costs: Callable[[Plan], float]) -> Group:
    """Methods and placements by makespan, and under the table why the others do not fit.

    Args:
        attempts: to show.
        costs: more columns: nanoseconds of a plan, by name.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for column, name in enumerate([*ATTEMPT_COLUMNS, *costs]):
        # The placement gives way first on a narrow terminal.
        table.add_column(name, justify="left" if column < 2 else "right", no_wrap=column != 1)
    for attempt in sorted(attempts, key=lambda attempt: attempt.makespan_ns):
        if attempt.plan:
            more = (f"{cost(attempt.plan) / 1e6:.2f} ms" for cost in costs.values())
            table.add_row(*attempt_row(attempt, attempt.plan), *more)
    return Group(table, *(Text(reason, style="dim") for reason in reasons(attempts)))


def attempt_row(attempt: Attempt, plan: Plan) -> tuple[str, ...]:
    """What `ATTEMPT_COLUMNS` say of an attempt that came to a plan."""
    return (
        attempt.method,
        attempt.placement,
        f"{plan.timeline.makespan_ns / 1e6:.2f} ms",
        "proven" if plan.status == "proven" else f"<= {rounded_up(plan.gap, 1)}",
        f"{plan.timeline.bubble_ratio:.1%}",
        format_bytes(max(plan.timeline.peak_memory_bytes)),
        f"{plan.wall_s:.2f}",
    )


def reasons(attempts: Sequence[Attempt]) -> list[str]:
    """Why attempts came to no plan; a method that was tried twice has one line for one reason."""
    lines = (
        f"{attempt.method} does not fit: "
        + str(attempt.error).removeprefix(f"{attempt.method} does not fit: ")
        for attempt in attempts
        if attempt.error
    )
    return list(dict.fromkeys(lines))


def rounded_up(share: float, num_digits: int) -> str:
    """A share that something is at most, in percent.

    >>> rounded_up(0.0001, 1), rounded_up(0.1, 1), rounded_up(0.28571, 2)
    ('0.1%', '10.0%', '28.58%')
    """
    scale = 10**num_digits
    return f"{math.ceil(100 * scale * share - _ROUNDING) / scale:.{num_digits}f}%"


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
