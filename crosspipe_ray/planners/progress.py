"""How a search tells what it has come to."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Told (best makespan so far, lower bound), in nanoseconds, when a search moves either."""


def unheard(makespan_ns: int, lower_bound_ns: int) -> None:
    """For a search whose progress nobody wants to know."""
