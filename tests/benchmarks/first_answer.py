"""What a person at a terminal waits for: `crosspipe plan` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from crosspipe_ray.compiled import SWITCH
from crosspipe_ray.problem import Problem, problem_json

_MAKESPAN = re.compile(rb"\d ms")
_TERMINAL = {"TERM": "xterm", "COLUMNS": "120"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds since the process was started.

    Attributes:
        first_s: until a makespan stood on the terminal.
        end_s: until the process was done.
    """

    first_s: float
    end_s: float
    is_proven: bool


def answer_of(problem: Problem, *, method: str) -> Answer:
    """Plans on a pseudo-terminal, compiling as it does for a user who has said nothing about it.

    Raises:
        RuntimeError: the command failed; shows what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "problem.json")
        file.write_text(json.dumps(problem_json(problem)))
        return _watched(
            [sys.executable, "-m", "crosspipe_ray", "plan", str(file), "--method", method]
        )


def _watched(command: list[str]) -> Answer:
    environment = {name: value for name, value in os.environ.items() if name != SWITCH} | _TERMINAL
    started, first_s, shown = time.perf_counter(), None, b""
    screen, terminal = os.openpty()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        while new := _read(screen):
            shown += new
            if first_s is None and _MAKESPAN.search(shown):
                first_s = time.perf_counter() - started
    end_s = time.perf_counter() - started
    os.close(screen)
    if process.returncode or first_s is None:
        raise RuntimeError(f"{' '.join(command)}:\n{shown.decode()}")
    return Answer(first_s, end_s, b"proven optimal" in shown)


def _read(screen: int) -> bytes:
    """What is shown next; nothing once no process has the terminal."""
    try:
        return os.read(screen, 4096)
    except OSError:
        return b""
