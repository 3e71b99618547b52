"""Inner loops: one source, run as Python on lists or as machine code (numba) on int64 arrays.

Results are the same either way. Lists are what Python is fast on, and a small problem is done
before a compiler has started; a large one pays for it. Machine code is kept on disk, beside the
source or in the user's cache folder: a machine compiles a loop once per version of its sources.

A loop takes what it needs as arrays, numbers and NamedTuples of them, and raises nothing. It had
better allocate nothing: numba then leaves out all reference counting, which makes loops over many
arrays ten times slower.

``CROSSPIPE_COMPILE=always`` compiles at first use, ``never`` stays with Python.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from crosspipe_ray.errors import InputError

SWITCH = "CROSSPIPE_COMPILE"
NEVER = 1 << 60  # a time that does not come, as loops write it
_LOAD_S = 0.3  # to import numba and read machine code from disk
_COMPILE_S = 3.0

Fields = TypeVar("Fields", bound=tuple[Any, ...])  # a NamedTuple


class Numbers(Protocol):
    """Whole numbers: a list in Python, an int64 array for machine code."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    @overload
    def __getitem__(self, index: int, /) -> int: ...

    @overload
    def __getitem__(self, index: slice, /) -> Any: ...

    def __setitem__(self, index: Any, value: Any, /) -> None: ...


def check_switch() -> None:
    """Refuses a word that the switch does not know.

    Raises:
        InputError: says which it does.
    """
    wish = os.environ.get(SWITCH)
    if wish not in (None, "", "always", "never"):
        raise InputError(f"{SWITCH}={wish}: it must be 'always' or 'never', or not set")


class Loop:
    """A function that becomes machine code when that pays.

    Python's time is counted; once it has cost as much as loading or compiling would, that is
    done. So no more than twice the least time is ever spent, whatever comes.

    Args:
        function: a plain function.
        helpers: the plain functions that it calls.
        allocates: whether any of them makes a list or an array.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *helpers: Callable[..., Any],
        allocates: bool = False,
    ) -> None:
        self._allocates = allocates
        self._function = function
        self._helpers = helpers
        self._python_s = 0.0
        self._is_ready = False

    def machine_code(self, *, python_s: float) -> Callable[..., Any] | None:
        """The machine code, or None where Python should do this call.

        Args:
            python_s: about how long the call would take Python.
        """
        wish = os.environ.get(SWITCH)
        if wish == "never":
            return None
        self._python_s += python_s
        if not (self._is_ready or wish == "always" or self._pays()):
            return None
        self._is_ready = True
        machine_code: Callable[..., Any] = self._dispatcher
        return machine_code

    def _pays(self) -> bool:
        if self._python_s < _LOAD_S:
            return False
        return self._python_s >= _COMPILE_S or self._is_on_disk()

    def _is_on_disk(self) -> bool:
        """Whether there is machine code of these sources; where numba hides it: no."""
        name = name_on_disk(self._function, *self._helpers)
        return any(Path(self._dispatcher.stats.cache_path).glob(f"*.{name}-*.nbi"))

    @cached_property
    def _dispatcher(self) -> Any:
        return compiled(self._function, *self._helpers, allocates=self._allocates)


@cache
def compiled(function: Callable[..., Any], *helpers: Callable[..., Any], allocates: bool) -> Any:
    """Machine code of a function, compiled or read from disk when it is first called.

    Args:
        function: a plain function.
        helpers: the plain functions that it calls.
        allocates: whether any of them makes a list or an array.
    """
    from numba import njit
    from numba.extending import register_jitable

    options = {"error_model": "numpy"} if allocates else {"error_model": "numpy", "_nrt": False}
    for helper in helpers:
        register_jitable(**options)(helper)
    named = FunctionType(function.__code__, function.__globals__)
    named.__qualname__ = name_on_disk(function, *helpers)
    return njit(cache=True, nogil=True, **options)(named)


@cache
def name_on_disk(function: Callable[..., Any], *helpers: Callable[..., Any]) -> str:
    """What machine code is kept as: numba itself looks for changes in the function's file only.

    Args:
        function: a plain function.
        helpers: the plain functions that it calls.
    """
    modules = sorted({each.__module__ for each in (function, *helpers)})
    sources = "".join(inspect.getsource(sys.modules[module]) for module in modules)
    return f"{function.__qualname__}_{hashlib.sha256(sources.encode()).hexdigest()[:16]}"


def as_arrays(fields: Fields) -> Fields:
    """The same NamedTuple, the sequences in it as int64 arrays."""
    return _remade(fields, lambda each: np.asarray(each, dtype=np.int64))


def as_lists(fields: Fields) -> Fields:
    """The same NamedTuple, the sequences in it as flat lists."""
    return _remade(fields, lambda each: np.ravel(each).tolist())


def _remade(fields: Fields, convert: Callable[[Any], Any]) -> Fields:
    make: Any = type(fields)
    made: Fields = make(*(each if isinstance(each, int) else convert(each) for each in fields))
    return made
