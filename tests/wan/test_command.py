"""The commands ``crosspipe wan ...``, as a user gives them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wan.leftovers import assert_nothing_is_left

pytestmark = pytest.mark.wan

NAME = f"command-{os.getpid()}"
TOPOLOGY = """
regions: [{name: us, num_hosts: 2}, {name: eu}]
links: [{src: us, dst: eu, latency_ms: 40, bandwidth_mbit_s: 1000}]
"""
EXIT_BAD_INPUT = 2


def crosspipe_wan(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crosspipe_ray", "wan", command, "--name", NAME, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def succeed(command: str, *arguments: str) -> str:
    done = crosspipe_wan(command, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(command: str, *arguments: str) -> str:
    """The one line of a command that is refused."""
    done = crosspipe_wan(command, *arguments)
    assert done.returncode == EXIT_BAD_INPUT, done
    assert done.stdout == ""
    return done.stderr.rstrip("\n")


@pytest.fixture
def topology(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "wan.yaml"
    file.write_text(TOPOLOGY)
    yield file
    succeed("down")


def test_a_wan_outlives_its_command_and_obeys_the_others(topology: Path) -> None:
    assert f"{NAME}: up; regions us (2), eu (1)" in succeed("up", str(topology))
    succeed("set", "us-eu", "--latency-ms", "80", "--one-way")
    succeed("partition", "us-eu")
    shown = succeed("status")
    assert "us-1: 10.77.1.2, 0 processes" in shown
    assert "us -> eu: CUT, 80 ms, 1000 Mbit/s" in shown
    assert "eu -> us: CUT, 40 ms, 1000 Mbit/s" in shown
    succeed("heal", "eu-us")
    assert "CUT" not in succeed("status")
    assert "is up; end it with" in refusal("up", str(topology))
    succeed("down")
    assert_nothing_is_left(NAME)


def test_exec_hands_over_everything_behind_the_region(topology: Path) -> None:
    succeed("up", str(topology))
    script = "ip -brief -4 address show wan0; exit 7"
    done = crosspipe_wan("exec", "eu", "--", "sh", "-c", script)
    assert done.returncode == 7
    assert re.search(r"wan0 .* 10\.77\.2\.1/16", done.stdout)


def test_mistakes_are_refused_in_one_line(topology: Path) -> None:
    assert refusal("status").endswith(
        f"no WAN named '{NAME}' is up; make one with `crosspipe wan up`"
    )
    assert "No such file" in refusal("up", str(topology.parent / "none.yaml"))
    succeed("up", str(topology))
    for arguments, expected in [
        (("partition", "us-moon"), "no link 'us-moon' in this WAN; links are us-eu, eu-us"),
        (("set", "us-eu"), "nothing to change; give one of --latency-ms"),
        (("set", "us-eu", "--loss", "2"), "us-eu: loss: input should be less than or equal to 1"),
        (("exec", "moon", "--", "true"), "no region or host 'moon'"),
    ]:
        message = refusal(*arguments)
        assert expected in message
        assert "\n" not in message
