"""Network namespaces: made, entered, emptied of processes, deleted."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from crosspipe_ray.errors import CrosspipeError, InputError

_FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x4000_0000
_COMMAND_TIMEOUT_S = 30.0
_POLL_S = 0.01
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments: str) -> None:
    """Runs iproute2's ``ip``.

    Raises:
        CrosspipeError: with what it says.
    """
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise CrosspipeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def add(namespace: str) -> None:
    """Makes a namespace in which the host can talk to itself."""
    ip("netns", "add", namespace)
    ip("-netns", namespace, "link", "set", "lo", "up")


def connect(namespace: str, device: str, *, address: str) -> None:
    """Gives a device its address, and routes all of the address's subnet into it."""
    # The queue is for the moments in which the emulator does not run: it must not lose anything.
    ip("-netns", namespace, "link", "set", device, "up", "txqueuelen", "5000")
    ip("-netns", namespace, "address", "add", address, "dev", device)


def route(namespace: str, device: str, subnet: str, *, congestion_control: str) -> None:
    """Chooses TCP's congestion control for a subnet.

    Raises:
        InputError: this kernel does not have it.
    """
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if congestion_control not in known:
        raise InputError(
            f"congestion_control: this kernel has no '{congestion_control}'; it has {known}"
        )
    options = ["dev", device, "congctl", congestion_control]
    ip("-netns", namespace, "route", "add", subnet, *options)


def set_sysctl(namespace: str, name: str, value: str) -> None:
    """Sets a kernel parameter that belongs to the namespace.

    Raises:
        InputError: there is no such parameter in a namespace, or the value is refused.
    """
    path = Path("/proc/sys", *name.split("."))
    try:
        with inside(namespace):
            path.write_text(value)
    except OSError as error:
        raise InputError(f"sysctls.{name}: cannot be set to '{value}': {error}") from None


def command(namespace: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs a command in a namespace."""
    return ["ip", "netns", "exec", namespace, *arguments]


def with_prefix(prefix: str) -> list[str]:
    """Namespaces that there are."""
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(_FOLDER) if name.startswith(prefix))  # noqa: PTH208 - names, not paths
    return []


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Lets this thread, and no other, be in a namespace; sockets made there stay there."""
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        there = os.open(_FOLDER / namespace, os.O_RDONLY)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def process_ids(namespace: str) -> list[int]:
    """Processes in a namespace."""
    try:
        wanted = (_FOLDER / namespace).stat()
    except FileNotFoundError:
        return []
    return [pid for pid in _all_pids() if _is_in(pid, wanted)]


def end_processes(namespaces: Sequence[str], *, timeout_s: float) -> None:
    """Kills all processes in namespaces, also those that they start meanwhile.

    Raises:
        CrosspipeError: one of them stays.
    """
    deadline = time.monotonic() + timeout_s
    while pids := [pid for name in namespaces for pid in process_ids(name)]:
        if time.monotonic() > deadline:
            raise CrosspipeError(f"processes {pids} do not end within {timeout_s:g} s")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def delete(namespace: str) -> None:
    """Deletes a namespace."""
    ip("netns", "delete", namespace)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_in(pid: int, namespace: os.stat_result) -> bool:
    try:
        its = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:  # it has just ended
        return False
    return (its.st_dev, its.st_ino) == (namespace.st_dev, namespace.st_ino)
