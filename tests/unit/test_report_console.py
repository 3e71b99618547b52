from io import StringIO

from rich.console import Console

from crosspipe_ray.report.console import planning_line


def shown(*, is_terminal: bool) -> str:
    written = StringIO()
    with planning_line(Console(file=written, force_terminal=is_terminal, width=80)) as show:
        show(12_360_000, 12_000_000)
    return written.getvalue()


def test_a_terminal_sees_what_planning_has_come_to() -> None:
    assert "planning: 12.36 ms so far, bound 12.00 ms (gap 3.00%)" in shown(is_terminal=True)


def test_a_log_does_not() -> None:
    assert shown(is_terminal=False).strip() == ""
