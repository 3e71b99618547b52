"""Small values between the ranks of a run without Ray, over the store where they meet."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports.communicators import TCPStore

Value = TypeVar("Value")


class Board:
    """All ranks post under the same names in the same order.

    Args:
        store: common to all ranks, who trust each other: values are pickled.
        rank: of this process.
        num_ranks: of the run.

    Attributes:
        clock: this rank's; owners set it where it is not rank 0's.
    """

    def __init__(self, store: TCPStore, *, rank: int, num_ranks: int) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.store = store
        self.clock: HostClock | None = None
        self._turn = 0

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, at every rank; waits for all, at most the store's timeout."""
        self._turn += 1
        self.store.set(f"board/{self._turn}/{self.rank}", _text(value))
        keys = [f"board/{self._turn}/{rank}" for rank in range(self.num_ranks)]
        # All at once: the store may be a WAN away.
        return [_value(text) for text in self.store.multi_get(keys)]

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, at every rank; an exception there is raised everywhere."""
        self._turn += 1
        if self.rank == 0:
            self.store.set(f"board/{self._turn}/0", _text(_outcome(make)))
        made: Value | Exception = _value(self.store.get(f"board/{self._turn}/0"))
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

    def start_together(self) -> None:
        """Goes on at the same moment on all ranks, as far as their clocks are known.

        News of the last rank's arrival takes longer to some than to others; so all wait until even
        the farthest has had time to hear of it twice.
        """
        last_ns = max(self.gather(self._now_ns()))
        heard_after_ns = max(self.gather(self._now_ns() - last_ns))
        start_ns = last_ns + 3 * heard_after_ns
        clock.sleep_until(self.clock.from_reference(start_ns) if self.clock else start_ns)

    def _now_ns(self) -> int:
        """By rank 0's clock."""
        now_ns = clock.now_ns()
        return self.clock.to_reference(now_ns) if self.clock else now_ns


def _value(text: bytes) -> Any:
    return pickle.loads(base64.b64decode(text))


def _text(value: object) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _outcome(make: Callable[[], Value]) -> Value | Exception:
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - raised again, at every rank
        return error
