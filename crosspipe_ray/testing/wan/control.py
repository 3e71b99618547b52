"""The emulator's control socket: one request and one answer per connection, both JSON."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from crosspipe_ray.errors import CrosspipeError

_MAX_BYTES = 1 << 20
_TIMEOUT_S = 5.0


def socket_path(folder: Path) -> Path:
    """Of the emulator of a WAN."""
    return folder / "control.sock"


def listen(folder: Path) -> socket.socket:
    """The emulator's end. Messages keep their borders, so one read gives a whole request."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(socket_path(folder)))
    listener.listen()
    listener.setblocking(False)
    return listener


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """A request that has come; None if the caller is gone."""
    data = connection.recv(_MAX_BYTES)
    request: dict[str, Any] | None = json.loads(data) if data else None
    return request


def answer(connection: socket.socket, content: object) -> None:
    """Answers without waiting."""
    connection.send(json.dumps(content).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def ask(folder: Path, request: dict[str, Any]) -> Any:
    """Asks the emulator of a WAN.

    Raises:
        CrosspipeError: it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(str(socket_path(folder)))
            connection.send(json.dumps(request).encode())
            data = connection.recv(_MAX_BYTES)
        except OSError as error:
            raise CrosspipeError(f"the emulator does not answer ({error})") from None
    if not data:
        raise CrosspipeError("the emulator did not answer; see its log")
    return json.loads(data)
