import importlib.metadata
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import crosspipe_ray

ROOT = Path(__file__).parents[2]


def test_version_is_the_distributions() -> None:
    assert importlib.metadata.version("crosspipe-ray") == crosspipe_ray.__version__


def test_command_leads_to_the_cli() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="crosspipe")
    assert command.value == "crosspipe_ray.cli:main"
    assert callable(command.load())


def test_type_marker_is_part_of_the_package() -> None:
    assert files(crosspipe_ray).joinpath("py.typed").is_file()


def test_published_figures_are_part_of_the_package() -> None:
    assert files(crosspipe_ray).joinpath("data/crosspipe_tables.json").is_file()


@pytest.mark.parametrize("name", ["actors", "planners"])
def test_top_level_folder_is_a_relative_link_into_the_package(name: str) -> None:
    assert (ROOT / name).readlink() == Path("crosspipe_ray", name)


@pytest.mark.parametrize("name", ["actors", "planners"])
def test_bare_import_of_a_linked_folder_says_what_to_import(name: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert f"ImportError: import crosspipe_ray.{name};" in process.stderr
