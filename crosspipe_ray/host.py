"""Facts about this host that decide how messages travel; nothing here needs torch or ray."""

from __future__ import annotations

import ctypes
import platform
import socket
from importlib import metadata
from pathlib import Path

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # the kernel's struct is smaller everywhere


def versions() -> dict[str, str]:
    """Of Python and of the packages whose versions have to agree between nodes."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("ray", "torch")
    }


def sysctl(name: str) -> str | None:
    """A kernel setting, as in ``net.ipv4.tcp_rmem``; None where there is no such thing."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


def boot_id() -> str | None:
    """The same in two processes only if they share a kernel, and with it a clock."""
    return sysctl("kernel.random.boot_id")


def clock_id() -> str:
    """The same in all processes that share a clock, and in no others as far as can be told."""
    return boot_id() or socket.gethostname()


def is_clock_synchronised() -> bool | None:
    """Whether something (NTP, PTP) keeps the clock right; None: not known."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))  # zeros: only asks
    return None if state < 0 else state != _TIME_ERROR
