"""One time axis for all processes of a host, and a sleep that ends when it should."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from crosspipe_ray.clock_estimate import HostClock

_PR_SET_TIMERSLACK = 29
# Linux wakes a sleeper up to this late by default (50 us); 1 ns halves the overshoot of a sleep.
_TIMER_SLACK_NS = 1
# The rest is the kernel's own wake-up time: it is spun away, so this bounds the spin as well.
_SPIN_NS = 50_000

_thread = threading.local()


def _wall_minus_counter_ns() -> int:
    """Offset of the wall clock to the counter, from the reading that was interrupted the least."""
    readings = []
    for _ in range(5):
        before = time.perf_counter_ns()
        wall = time.time_ns()
        after = time.perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


_ANCHOR_NS = _wall_minus_counter_ns()
_wrong: HostClock | None = None


def now_ns() -> int:
    """Nanoseconds since 1970 that never run backwards.

    The wall clock is read once per process, later progress is the monotonic counter's. So the spans
    of several processes of one host share an axis, unless somebody sets its clock between their
    starts. Those of several hosts do not: see `clock_exchange`.
    """
    right_ns = _ANCHOR_NS + time.perf_counter_ns()
    return right_ns if _wrong is None else _wrong.from_reference(right_ns)


@contextmanager
def going_wrong(like: HostClock) -> Iterator[None]:
    """Lets this process's clock run as another host's would: to test what corrects it.

    Args:
        like: its offset and drift against the right time.
    """
    global _wrong
    _wrong = like
    try:
        yield
    finally:
        _wrong = None


def sleep_until(deadline_ns: int, *, interrupt: threading.Event | None = None) -> bool:
    """Sleeps until ``now_ns()`` reaches the deadline, typically less than 5 us too long.

    Args:
        deadline_ns: on the axis of ``now_ns``; one in the past returns at once.
        interrupt: setting it ends the sleep early.

    Returns:
        False if the sleep was interrupted.
    """
    _tighten_timer_slack()
    while (left_ns := deadline_ns - now_ns() - _SPIN_NS) > 0:
        if interrupt is None:
            time.sleep(left_ns * 1e-9)
        elif interrupt.wait(left_ns * 1e-9):
            return False
    while now_ns() < deadline_ns:
        pass
    return True


def _tighten_timer_slack() -> None:
    """Asks the kernel, once per thread, to wake this thread on time; only Linux can."""
    if getattr(_thread, "is_tight", False):
        return
    _thread.is_tight = True
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0)
