"""What is known about every WAN of this machine: one folder each, which a crash leaves behind."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from crosspipe_ray.errors import InputError
from crosspipe_ray.files import write_atomically
from crosspipe_ray.testing.wan.spec import WanSpec

_ROOT = Path("/run/crosspipe-wan")
_STATE = "state.json"

State = TypeVar("State", bound="Lives")


class Process(BaseModel, frozen=True):
    """A process by its id and start time, since ids are given again.

    Attributes:
        pid: its id.
        started: clock ticks between the machine's start and its own.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """A process that runs."""
        return cls(pid=pid, started=_start_ticks(pid) or 0)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return _start_ticks(self.pid) == self.started


class Lives(BaseModel, frozen=True):
    """The processes that a WAN needs. Readable also where another version wrote it.

    Attributes:
        owner: the WAN is of no use without it; None: until ``down``.
        emulator: None: not started yet.
    """

    owner: Process | None
    emulator: Process | None = None

    @property
    def is_orphan(self) -> bool:
        """Whether one of them is gone."""
        return any(each and not each.is_alive for each in (self.owner, self.emulator))


class WanState(Lives, frozen=True):
    """A WAN that is up, being made, or left behind.

    Attributes:
        spec: as it was asked for.
        ray_address: of the head node, if Ray runs in it.
    """

    spec: WanSpec
    ray_address: str | None = None


def check_name(name: str) -> None:
    """Names are parts of file and namespace names.

    Raises:
        InputError: not such a name.
    """
    if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
        raise InputError(f"--name {name}: only lower-case letters, digits and '-'")


def folder(name: str) -> Path:
    """Of a WAN: state, control socket, log, Ray's files."""
    return _ROOT / name


def names() -> list[str]:
    """Every WAN that has a folder."""
    return sorted(path.name for path in _ROOT.glob("*"))


def read(name: str) -> WanState | None:
    """None: there is no such WAN, or it broke off before it had anything."""
    return _read(name, WanState)


def read_lives(name: str) -> Lives | None:
    """The part that says whether it is an orphan."""
    return _read(name, Lives)


def write(name: str, state: WanState) -> None:
    """Notes the state of a WAN; its folder is made where it is missing."""
    folder(name).mkdir(mode=0o700, exist_ok=True)
    write_atomically(folder(name) / _STATE, state.model_dump_json())


@contextmanager
def lock() -> Iterator[None]:
    """Keeps other processes from making and removing WANs; the kernel opens it for a dead one.

    The root folder itself is the lock. It goes when it is empty, so that nothing is left.
    """
    while True:
        _ROOT.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(_ROOT, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_root(descriptor):  # it was removed while this process waited
                continue
            try:
                yield
            finally:
                if not any(_ROOT.iterdir()):
                    _ROOT.rmdir()
            return
        finally:
            os.close(descriptor)


def _read(name: str, kind: type[State]) -> State | None:
    try:
        return kind.model_validate_json((folder(name) / _STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _is_root(descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), _ROOT.stat())
    except FileNotFoundError:
        return False


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if the process is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
