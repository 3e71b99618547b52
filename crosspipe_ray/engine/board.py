"""Small values between the ranks of a run without Ray, over the store where they meet."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import TypeVar

from crosspipe_ray.engine.transports.communicators import TCPStore

Value = TypeVar("Value")


class Board:
    """All ranks post under the same names in the same order.

    Args:
        store: common to all ranks, who trust each other: values are pickled.
        rank: of this process.
        num_ranks: of the run.
    """

    def __init__(self, store: TCPStore, *, rank: int, num_ranks: int) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.store = store
        self._turn = 0

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, at every rank; waits for all, at most the store's timeout."""
        self._turn += 1
        self.store.set(f"board/{self._turn}/{self.rank}", _text(value))
        return [self._read(rank) for rank in range(self.num_ranks)]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, at every rank; an exception there is raised everywhere."""
        self._turn += 1
        if self.rank == 0:
            self.store.set(f"board/{self._turn}/0", _text(_outcome(make)))
        made: Value | Exception = self._read(0)
        if isinstance(made, Exception):
            raise made
        return made

    def wait_for_all(self) -> None:
        """Goes on when every rank is here."""
        self.gather(None)

    def leave(self) -> None:
        """The last thing a rank does; rank 0, who may host the store, goes when all have gone."""
        self.store.set(f"board/left/{self.rank}", "")
        if self.rank == 0:
            self.store.wait([f"board/left/{rank}" for rank in range(self.num_ranks)])

    def _read(self, rank: int):  # type: ignore[no-untyped-def]  # as typed as a pickle is
        text = self.store.get(f"board/{self._turn}/{rank}")
        return pickle.loads(base64.b64decode(text))


def _text(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _outcome(make: Callable[[], Value]) -> Value | Exception:
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - raised again, at every rank
        return error
