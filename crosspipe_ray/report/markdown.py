"""Tables as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.report.console import ATTEMPT_COLUMNS, attempt_row, reasons


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int) -> str:
    """A table; the first ``num_left`` columns are set left, the others right.

    >>> print(markdown_table(("a", "b"), [("x", "1")], num_left=1), end="")
    | a | b |
    |---|---:|
    | x | 1 |
    """
    rule = "|---" * num_left + "|---:" * (len(columns) - num_left) + "|"
    return "".join(f"{line}\n" for line in (_line(columns), rule, *map(_line, rows)))


def attempts_markdown(attempts: Sequence[Attempt]) -> str:
    """Methods as they come, and under the table why those without a plan do not fit."""
    rows = [attempt_row(each, each.plan) for each in attempts if each.plan]
    table = markdown_table(ATTEMPT_COLUMNS, rows, num_left=2)
    notes = [f"- {reason}\n" for reason in reasons(attempts)]
    return "".join([table, "\n" * bool(notes), *notes])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
