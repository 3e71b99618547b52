from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.command import Command

# The same examples in every run: a failure in CI is a failure on the desk.
settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture
def crosspipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


@pytest.fixture
def problem_file(crosspipe: Command) -> str:
    crosspipe("problem", "--ranks", "4", "--num-microbatches", "6", "--memory", "1", "-o", "p.json")
    return "p.json"


@pytest.fixture
def plan_file(crosspipe: Command, problem_file: str) -> str:
    crosspipe("plan", problem_file, "--method", "zb-h1", "--output", "plan.json")
    return "plan.json"
