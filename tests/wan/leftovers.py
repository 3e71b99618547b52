"""What a WAN has on a machine, looked for without its own help."""

from __future__ import annotations

import os
import time
from pathlib import Path

TIMEOUT_S = 30.0


def leftovers(name: str, *pids: int) -> list[str]:
    """Namespaces, files and processes of a WAN, and those of the given processes that are alive."""
    found = [f"namespace {each.name}" for each in Path("/run/netns").glob(f"crosspipe.{name}.*")]
    # Path.rglob raises where a folder goes while it looks.
    for folder, _, files in os.walk(f"/run/crosspipe-wan/{name}"):
        found += [folder, *(f"{folder}/{file}" for file in files)]
    return found + [f"process {pid}" for pid in {*emulators(name), *pids} if _is_alive(pid)]


def emulators(name: str) -> list[int]:
    """Emulators that run for a WAN, by their command line."""
    wanted = ["crosspipe_ray.testing.wan.emulator", name, ""]
    return [pid for pid in _all_pids() if _command_line(pid)[-3:] == wanted and _is_alive(pid)]


def assert_nothing_is_left(name: str, *pids: int) -> None:
    """Waits for what somebody else removes."""
    deadline = time.monotonic() + TIMEOUT_S
    while found := leftovers(name, *pids):
        assert time.monotonic() < deadline, found


def wait_for_end(pid: int) -> None:
    """Of a process that was killed."""
    deadline = time.monotonic() + TIMEOUT_S
    while _is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _is_alive(pid: int) -> bool:
    """Zombies are not: they wait for a parent that does not look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
