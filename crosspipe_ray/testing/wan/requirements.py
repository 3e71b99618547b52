"""What a machine needs for an emulated WAN."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from crosspipe_ray.errors import InputError
from crosspipe_ray.testing.wan.tun import DEVICE

_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21


def missing() -> str | None:
    """Why there can be no emulated WAN here, in one line; None if there can."""
    wanted = 1 << _CAP_NET_ADMIN | 1 << _CAP_SYS_ADMIN
    if _capabilities() & wanted != wanted:
        return "an emulated WAN needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"an emulated WAN needs {DEVICE}: load the module 'tun', or pass the device on"
    if shutil.which("ip") is None:
        return "an emulated WAN needs the command 'ip': install iproute2"
    return None


def check() -> None:
    """Refuses a machine that cannot emulate a WAN.

    Raises:
        InputError: says what it lacks.
    """
    reason = missing()
    if reason is not None:
        raise InputError(reason)


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
