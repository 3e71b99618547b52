"""Inner loops, compiled by numba where that pays: one source, run as Python or as machine code.

A function that can be compiled works on flat integer sequences: lists in Python, where lists are
fast, and int64 arrays when compiled. Its results are the same either way. Compiling takes seconds
once per machine and version of the source; the code is kept beside the source, or in the user's
cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def compiled(function: Callable[..., Any], *helpers: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code of a function.

    Args:
        function: a plain function of arrays, numbers and NamedTuples of them.
        helpers: the plain functions that it calls.
    """
    from numba import njit
    from numba.extending import register_jitable

    for helper in helpers:
        register_jitable(helper)
    machine_code: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    return machine_code
