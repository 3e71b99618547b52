"""Makes a WAN, and removes everything of one, whatever a crash has left of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

from crosspipe_ray.errors import CrosspipeError, InputError
from crosspipe_ray.testing.wan import namespaces, requirements, state
from crosspipe_ray.testing.wan.spec import Host, WanSpec
from crosspipe_ray.testing.wan.state import Process, WanState

DEVICE = "wan0"
_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 20.0
_POLL_S = 0.01


def namespace(name: str, host: str) -> str:
    """The network namespace of a host."""
    return f"{_prefix(name)}{host}"


def up(spec: WanSpec, *, name: str) -> None:
    """Makes a WAN that lives as long as this process; ``detach`` lets it live on.

    Whatever earlier runs have left behind is removed first.

    Raises:
        InputError: this machine cannot, or a WAN of this name is up.
        CrosspipeError: the kernel refuses something; nothing is left.
    """
    requirements.check()
    state.check_name(name)
    begun = WanState(spec=spec, owner=Process.of(os.getpid()))
    with state.lock():
        _sweep()
        if name in state.names():
            raise InputError(f"a WAN named '{name}' is up; end it with `crosspipe wan down` first")
        state.write(name, begun)
    try:
        for host in spec.hosts:
            _make_host(name, spec, host)
        emulator = _start_emulator(name)
        state.write(name, begun.model_copy(update={"emulator": emulator}))
        for host in spec.hosts:
            _connect_host(name, spec, host)
    except BaseException:
        down(name)
        raise


def detach(name: str) -> None:
    """Lets a WAN live on after this process, until ``down``."""
    _update(name, owner=None)


def note_ray(name: str, address: str) -> None:
    """Notes where the head node of a WAN is."""
    _update(name, ray_address=address)


def down(name: str) -> None:
    """Removes all processes, namespaces and files of a WAN; nothing happens if there are none.

    Raises:
        CrosspipeError: a process does not end.
    """
    with state.lock():
        _remove(name)


def _update(name: str, **changes: object) -> None:
    known = state.read(name)
    if known is None:
        raise CrosspipeError(f"the WAN '{name}' has been removed by somebody else")
    state.write(name, known.model_copy(update=changes))


def _sweep() -> None:
    """Removes every WAN that somebody has left behind."""
    for name in state.names():
        known = state.read_lives(name)
        if known is None or known.is_orphan:
            _remove(name)


def _remove(name: str) -> None:
    known = state.read_lives(name)
    if known is not None and known.emulator is not None:
        _end(known.emulator)
    left = namespaces.with_prefix(_prefix(name))
    namespaces.end_processes(left, timeout_s=_END_TIMEOUT_S)
    for each in left:
        namespaces.delete(each)
    shutil.rmtree(state.folder(name), ignore_errors=True)


def _end(process: Process) -> None:
    """Kills a process, unless it is this one, and waits for its end."""
    if process.pid == os.getpid():
        return
    deadline = time.monotonic() + _END_TIMEOUT_S
    while process.is_alive:
        if time.monotonic() > deadline:
            raise CrosspipeError(f"process {process.pid} does not end")
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _make_host(name: str, spec: WanSpec, host: Host) -> None:
    own = namespace(name, host.name)
    namespaces.add(own)
    for key, value in spec.sysctls.items():
        namespaces.set_sysctl(own, key, str(value))


def _connect_host(name: str, spec: WanSpec, host: Host) -> None:
    """Gives a host its address; the emulator has made its device."""
    own = namespace(name, host.name)
    namespaces.connect(own, DEVICE, address=f"{host.address}/16")
    for (src, dst), link in spec.directed_links.items():
        if src == host.region and link.congestion_control is not None:
            namespaces.route(
                own, DEVICE, spec.subnet(dst), congestion_control=link.congestion_control
            )


def _start_emulator(name: str) -> Process:
    """Starts the emulator, which goes into the background when it is ready."""
    started = subprocess.run(
        [sys.executable, "-m", "crosspipe_ray.testing.wan.emulator", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=_START_TIMEOUT_S,
        check=False,
    )
    if started.returncode:
        raise CrosspipeError(f"the emulator does not start: {started.stderr.strip()[-500:]}")
    return Process.of(int(started.stdout))


def _prefix(name: str) -> str:
    return f"crosspipe.{name}."
