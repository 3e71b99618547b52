"""Where the emulator takes orders, between packets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from crosspipe_ray.testing.wan import control
from crosspipe_ray.testing.wan.link import EmulatedLink
from crosspipe_ray.testing.wan.spec import LinkSettings

Pair = tuple[str, str]


class Loop(Protocol):
    """The emulator, as far as it matters here."""

    links: dict[Pair, EmulatedLink]

    def watch(self, descriptor: int, read: Callable[[int], None]) -> None:
        """Calls ``read`` whenever there is something to read."""

    def forget(self, descriptor: int) -> None:
        """Ends ``watch``."""


class ControlDesk:
    """Answers requests about links.

    Args:
        loop: whose links they are.
        settings: that the links start with.
        listener: where requests come.
    """

    def __init__(
        self, loop: Loop, settings: Mapping[Pair, LinkSettings], listener: socket.socket
    ) -> None:
        self._loop = loop
        self._settings = {pair: _plain(each) for pair, each in settings.items()}
        self._listener = listener
        self._callers: dict[int, socket.socket] = {}
        loop.watch(listener.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        caller, _address = self._listener.accept()
        self._callers[caller.fileno()] = caller
        self._loop.watch(caller.fileno(), self._answer)

    def _answer(self, descriptor: int) -> None:
        self._loop.forget(descriptor)
        with self._callers.pop(descriptor) as caller, suppress(OSError):  # the caller may be gone
            request = control.receive(caller)
            if request is not None:
                control.answer(caller, self._handle(request))

    def _handle(self, request: dict[str, Any]) -> object:
        if request["do"] == "report":
            return [self._report(pair) for pair in self._loop.links]
        pair = request["src"], request["dst"]
        link = self._loop.links[pair]
        if request["do"] == "set":
            self._settings[pair] = self._settings[pair].model_copy(update=request["changes"])
            link.reshape(self._settings[pair].shape)
        elif request["do"] == "cut":
            link.cut()
        else:
            link.heal()
        return "done"

    def _report(self, pair: Pair) -> dict[str, object]:
        src, dst = pair
        settings = self._settings[pair].model_dump()
        return {"src": src, "dst": dst, "settings": settings, **self._loop.links[pair].report()}


def _plain(settings: LinkSettings) -> LinkSettings:
    """Without the fields that a subclass adds."""
    return LinkSettings(**settings.model_dump(include=set(LinkSettings.model_fields)))
