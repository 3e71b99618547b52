"""Nothing of a WAN is left, whoever is killed and when."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crosspipe_ray.errors import CrosspipeError, InputError
from crosspipe_ray.testing.wan import attach, emulated_wan, lifecycle, mesh, state
from tests.wan.leftovers import (
    TIMEOUT_S,
    assert_nothing_is_left,
    emulators,
    leftovers,
    wait_for_end,
)

pytestmark = pytest.mark.wan

NAME = f"test-{os.getpid()}"
OWNER = """
import subprocess, sys
from crosspipe_ray.testing.wan import emulated_wan, mesh
with emulated_wan(mesh("us", "eu"), name=sys.argv[1]) as wan:
    sleeper = subprocess.Popen(wan.command("eu", ["sleep", "1000"]))
    while not wan.process_ids("eu"): pass
    print(sleeper.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a WAN of its own, and another one that runs on a host of it."""
    arguments = [sys.executable, "-c", OWNER, NAME]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        try:
            yield owner, int(owner.stdout.readline())
        finally:
            owner.kill()
            lifecycle.down(NAME)


def test_nothing_is_left_after_an_orderly_end() -> None:
    with emulated_wan(mesh("us", "eu"), name=NAME) as wan:
        sleeper = subprocess.Popen(wan.command("us", ["sleep", "1000"]))
        [emulator] = emulators(NAME)
        assert len(leftovers(NAME, emulator)) >= 5
    assert sleeper.wait(TIMEOUT_S) == -signal.SIGKILL
    assert_nothing_is_left(NAME, emulator)


def test_nothing_is_left_after_an_error_while_it_is_made() -> None:
    spec = mesh("us", "eu", congestion_control="none-such")
    with pytest.raises(InputError, match="this kernel has no 'none-such'"):
        lifecycle.up(spec, name=NAME)
    assert_nothing_is_left(NAME)


def test_killing_the_owner_removes_everything_at_once() -> None:
    with owner_process() as (owner, sleeper):
        [emulator] = emulators(NAME)
        owner.kill()
        owner.wait(TIMEOUT_S)
        assert_nothing_is_left(NAME, sleeper, emulator)


def test_the_next_wan_removes_what_is_left_when_owner_and_emulator_are_killed() -> None:
    with owner_process() as (owner, sleeper):
        [emulator] = emulators(NAME)
        os.kill(emulator, signal.SIGSTOP)  # so that it sees nothing
        owner.kill()
        owner.wait(TIMEOUT_S)
        os.kill(emulator, signal.SIGKILL)
        assert f"process {sleeper}" in leftovers(NAME, sleeper)
        with emulated_wan(mesh("us"), name=f"{NAME}-next"):
            assert_nothing_is_left(NAME, sleeper, emulator)


def test_interrupting_the_owner_removes_everything() -> None:
    with owner_process() as (owner, sleeper):
        owner.send_signal(signal.SIGINT)
        owner.wait(TIMEOUT_S)
        assert_nothing_is_left(NAME, sleeper)


def test_a_wan_without_its_emulator_is_called_broken_and_can_be_removed() -> None:
    with emulated_wan(mesh("us", "eu"), name=NAME):
        [emulator] = emulators(NAME)
        os.kill(emulator, signal.SIGKILL)
        wait_for_end(emulator)
        with pytest.raises(CrosspipeError, match="broken; remove it with `crosspipe wan down`"):
            attach(NAME)
        lifecycle.down(NAME)
        assert_nothing_is_left(NAME, emulator)
    lifecycle.down(NAME)  # once more does no harm


def test_two_wans_of_one_name_are_refused_and_of_two_names_are_not() -> None:
    with emulated_wan(mesh("us"), name=NAME) as first:
        with pytest.raises(InputError, match=f"a WAN named '{NAME}' is up"):
            lifecycle.up(mesh("us"), name=NAME)
        with emulated_wan(mesh("us"), name=f"{NAME}-b"):
            assert first.report() == []


def test_a_living_wan_of_another_version_is_left_alone() -> None:
    with emulated_wan(mesh("us"), name=NAME):
        file = state.folder(NAME) / "state.json"
        known = json.loads(file.read_bytes())
        file.write_text(json.dumps({**known, "spec": {"from": "the future"}}))
        with emulated_wan(mesh("us"), name=f"{NAME}-next"):
            assert len(emulators(NAME)) == 1
