"""Who imports whom: the arrows of the design, and that planning needs neither torch nor ray."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crosspipe_ray import errors

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crosspipe_ray"
HEAVY_PARTS = ("actors", "engine", "plan_table", "testing", "training")


def source_files(part: str) -> list[Path]:
    """The files of a module (``ops``, ``training.model``) or of everything under a folder."""
    path = PACKAGE.joinpath(*part.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def light_files() -> list[Path]:
    heavy = [file for part in HEAVY_PARTS for file in source_files(part)]
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file not in heavy]


def loaded_after_import(files: list[Path]) -> set[str]:
    """Top-level names in sys.modules after a fresh process has imported these files."""
    names = [module_name(file) for file in files if file.stem != "__main__"]
    script = (
        "import importlib, json, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, timeout=100, check=True
    )
    return set(json.loads(process.stdout))


def test_planning_simulating_and_reporting_load_neither_torch_nor_ray() -> None:
    loaded = loaded_after_import(light_files())
    assert "crosspipe_ray" in loaded
    assert not loaded & {"torch", "ray", "pyarrow", "safetensors", "transformers"}


def test_engine_loads_torch_but_not_ray() -> None:
    loaded = loaded_after_import(source_files("engine"))
    assert "torch" in loaded
    assert "ray" not in loaded


HEAVY = ("engine", "actors", "training", "cli")
FORBIDDEN = {
    "ops": ("schedule", "rules", "simulate", "lowering", "planners", "report", *HEAVY),
    "program": ("schedule", "rules", "simulate", "lowering", "planners", "report", *HEAVY),
    "timeline": ("schedule", "rules", "simulate", "lowering", "planners", "report", *HEAVY),
    "schedule": ("rules", "simulate", "lowering", "planners", *HEAVY),
    "rules": ("simulate", "lowering", "planners", *HEAVY),
    "simulate": ("planners", *HEAVY),
    "lowering": ("planners", *HEAVY),
    "planners": HEAVY,
    "report": HEAVY,
    "benchmarks": HEAVY,
    "training.model": ("engine", "actors", "training.trainer", "cli"),
    "training.data": ("engine", "actors", "training.trainer", "cli"),
    "training.optimizer": ("engine", "actors", "training.trainer", "cli"),
    "engine": ("actors", "training.trainer", "cli"),
    "actors": ("training.trainer", "cli"),
    "training.trainer": ("cli",),
}


def imported_names(file: Path) -> Iterator[str]:
    """What a file imports, inside functions too; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_follow_the_arrows(part: str) -> None:
    wrong = [
        f"{module_name(file)} imports {name}"
        for file in source_files(part)
        for name in imported_names(file)
        for target in FORBIDDEN[part]
        if f"{name}.".startswith(f"crosspipe_ray.{target}.")
    ]
    assert not wrong


def test_only_the_actors_and_those_above_them_know_ray() -> None:
    above = ("actors", "testing", "training.trainer", "cli")
    allowed = {file for part in above for file in source_files(part)}
    wrong = [
        module_name(file)
        for file in sorted(PACKAGE.rglob("*.py"))
        if file not in allowed
        and any(name.partition(".")[0] == "ray" for name in imported_names(file))
    ]
    assert not wrong


def test_docstring_of_errors_shows_every_error() -> None:
    assert errors.__doc__
    defined = [name for name, value in inspect.getmembers(errors, inspect.isclass)]
    assert [name for name in defined if name not in errors.__doc__] == []
