from dataclasses import replace
from io import StringIO

from rich.console import Console

from crosspipe_ray.planners.portfolio import Attempt, plan
from crosspipe_ray.report.console import RunConsole, planning_line
from tests.unit.builders import make_problem


def shown(*, is_terminal: bool) -> str:
    written = StringIO()
    with planning_line(Console(file=written, force_terminal=is_terminal, width=80)) as show:
        show(12_360_000, 12_000_000)
    return written.getvalue()


def test_a_terminal_sees_what_planning_has_come_to() -> None:
    assert "planning: 12.36 ms so far, bound 12.00 ms (gap 3.00%)" in shown(is_terminal=True)


def test_a_log_does_not() -> None:
    assert shown(is_terminal=False).strip() == ""


def test_what_one_method_proves_holds_for_the_others() -> None:
    proven = plan(make_problem((0, 1), 4), method="greedy")
    looser = replace(proven, method="zb-h2", lower_bound_ns=1, status="gap")
    written = StringIO()
    attempts = [Attempt(made.method, "as given", made) for made in (proven, looser)]
    RunConsole(Console(file=written, width=120)).attempts(attempts)
    assert written.getvalue().count("proven") == 2
