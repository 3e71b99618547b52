"""Python and machine code come to the same, and a small problem waits for no compiler."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crosspipe_ray import compiled
from crosspipe_ray.compiled import SWITCH, Loop, name_on_disk
from crosspipe_ray.planners.bounds.makespan import bounds_of
from crosspipe_ray.planners.greedy.search import greedy_order
from crosspipe_ray.planners.placement import Pattern
from crosspipe_ray.problem import Problem
from tests.unit.builders import make_problem, regions_problem

ROOT = Path(__file__).parents[2]


def wave_over_shared_channels() -> Problem:
    data = regions_problem(4, 8, memory=8, latency_us=0.5, occupancy_us=0.75)
    wave = make_problem(Pattern.WAVE.positions(4, 2), 8, rank={"memory_limit_bytes": 8})
    return wave.model_copy(update={"ranks": data.ranks, "links": data.links})


PROBLEMS = {
    "one per rank": regions_problem(8, 16, memory=8, latency_us=2, occupancy_us=0.25),
    "wave": wave_over_shared_channels(),
    "fused": make_problem((0, 1, 2), 6, fused_backward=True, stage={"gather_us": 4}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_machine_code_and_python_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for wish in ("never", "always"):
        monkeypatch.setenv(SWITCH, wish)
        bounds = bounds_of(PROBLEMS[name])
        order = greedy_order(PROBLEMS[name], bounds=bounds, iterations=25, time_limit_s=60.0)
        found.append((bounds, order))
    (bounds, order), (again, order_again) = found
    assert order == order_again
    assert bounds.makespan_ns == again.makespan_ns
    assert np.array_equal(bounds.heads, again.heads)
    assert np.array_equal(bounds.tails, again.tails)


def environment(**changes: str) -> dict[str, str]:
    """Of a process where the switch is not set, but for the changes."""
    return {name: value for name, value in os.environ.items() if name != SWITCH} | changes


def test_small_problems_do_not_load_numba() -> None:
    script = (
        "import sys\n"
        "from crosspipe_ray.planners.greedy.search import greedy_order\n"
        "from tests.unit.builders import regions_problem\n"
        "greedy_order(regions_problem(8, 32, memory=8))\n"
        "sys.exit('numba' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), timeout=60)
    assert done.returncode == 0


TINY = """
from crosspipe_ray.compiled import Loop
from tiny_helper import product

def double(number):
    return product(2, number)

machine_code = Loop(double, product).machine_code(python_s=0.5)  # more than loading takes
print(machine_code(21), sum(machine_code.stats.cache_hits.values()))
"""
HELPER = "def product(first, second):\n    return first * second\n"


def test_machine_code_outlives_the_process_but_not_its_sources(tmp_path: Path) -> None:
    script, helper = tmp_path / "tiny.py", tmp_path / "tiny_helper.py"
    script.write_text(TINY)
    folders = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run(source: str, **switch: str) -> str:
        helper.write_text(source)
        return subprocess.check_output(
            [sys.executable, script], env=environment(**folders, **switch), timeout=60, text=True
        )

    assert run(HELPER, **{SWITCH: "always"}) == "42 0\n"
    assert run(HELPER) == "42 1\n"
    assert run(HELPER.replace("*", "**"), **{SWITCH: "always"}) == f"{2**21} 0\n"


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the loops of a test find what numba has kept; nothing is compiled."""

    def fake(function: Any, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(stats=SimpleNamespace(cache_path=str(tmp_path)), function=function)

    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(compiled, "compiled", fake)
    return tmp_path


def test_work_pays_for_the_compiler_when_it_takes_python_as_long(cache_folder: Path) -> None:
    loop = Loop(double)
    answers = [loop.machine_code(python_s=1.0) is not None for _ in range(4)]
    assert answers == [False, False, True, True]
    assert not any(cache_folder.iterdir())


def test_machine_code_on_disk_pays_sooner(cache_folder: Path) -> None:
    (cache_folder / f"test_compiled.{name_on_disk(double)}-63.py311.nbi").touch()
    loop = Loop(double)
    answers = [loop.machine_code(python_s=0.2) is not None for _ in range(3)]
    assert answers == [False, True, True]


def test_machine_code_of_another_source_does_not_count(cache_folder: Path) -> None:
    (cache_folder / "test_compiled.double_0123456789abcdef-63.py311.nbi").touch()
    assert Loop(double).machine_code(python_s=1.0) is None


@pytest.mark.parametrize(
    ("wish", "python_s", "wanted"), [("always", 0.0, True), ("never", 9.9, False)]
)
def test_the_switch_decides(
    wish: str, python_s: float, wanted: bool, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, wish)
    assert (Loop(double).machine_code(python_s=python_s) is not None) is wanted
    assert not any(cache_folder.iterdir())
