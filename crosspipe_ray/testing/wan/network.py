"""An emulated WAN in the hands of a program: run commands in it, open sockets, change its links."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crosspipe_ray.config import Section
from crosspipe_ray.errors import CrosspipeError, InputError
from crosspipe_ray.parsing import parse_model
from crosspipe_ray.testing.wan import control, lifecycle, namespaces, ray_nodes, state
from crosspipe_ray.testing.wan.spec import Host, LinkSettings, WanSpec


class LinkReport(Section):
    """One direction of a link as it is now, and what it has seen.

    Attributes:
        settings: that hold now.
        is_cut: whether it is partitioned.
        num_segments: wire segments that were to be sent.
        num_lost: of them, lost by chance.
        num_queue_drops: packets that found the queue before the link full.
        num_cut: packets lost to a partition.
        num_bytes: delivered.
    """

    src: str
    dst: str
    settings: LinkSettings
    is_cut: bool
    num_segments: int
    num_lost: int
    num_queue_drops: int
    num_cut: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Wan:
    """A WAN that is up. A place is a host or a region; a region stands for its first host.

    Attributes:
        name: of the WAN.
        spec: as it was made.
        ray_address: of the head node, if Ray nodes run in it.
    """

    name: str
    spec: WanSpec
    ray_address: str | None = None

    def host(self, place: str) -> Host:
        """The host that is meant.

        Raises:
            InputError: there is none.
        """
        for host in self.spec.hosts:
            if place in (host.name, host.region):
                return host
        names = [host.name for host in self.spec.hosts]
        raise InputError(f"no region or host '{place}' in this WAN; hosts are {names}")

    def address(self, place: str) -> str:
        """IPv4 address of a host."""
        return self.host(place).address

    def open_socket(self, place: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """An IPv4 socket of a host, for use in this process."""
        with namespaces.inside(self._namespace(place)):
            return socket.socket(socket.AF_INET, kind)

    def command(self, place: str, arguments: Sequence[str]) -> list[str]:
        """The command line that runs a command on a host."""
        return namespaces.command(self._namespace(place), arguments)

    @property
    def environment(self) -> dict[str, str]:
        """For commands on its hosts: this process's own, and where Ray is."""
        return {**os.environ, **ray_nodes.environment(self.ray_address)}

    def run(
        self, place: str, arguments: Sequence[str], *, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host and waits for its end; keeps what it prints."""
        return subprocess.run(
            self.command(place, arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def process_ids(self, place: str) -> list[int]:
        """What runs on a host."""
        return namespaces.process_ids(self._namespace(place))

    def set(self, src: str, dst: str, *, one_way: bool = False, **changes: float | None) -> None:
        """Changes links while they are in use; packets on their way arrive as they would have.

        Args:
            src: region.
            dst: region.
            one_way: leave the other direction as it is.
            changes: fields of ``LinkSettings``; the others stay.

        Raises:
            InputError: no such link or field, or a value out of range.
        """
        valid = parse_model(LinkSettings, changes, source=f"{src}-{dst}", error=InputError)
        self._tell(src, dst, one_way, do="set", changes=valid.model_dump(exclude_unset=True))

    def partition(self, src: str, dst: str, *, one_way: bool = False) -> None:
        """Cuts a link; what is on its way is lost."""
        self._tell(src, dst, one_way, do="cut")

    def heal(self, src: str, dst: str, *, one_way: bool = False) -> None:
        """Mends a link that was cut."""
        self._tell(src, dst, one_way, do="heal")

    def report(self) -> list[LinkReport]:
        """Every direction of every link."""
        answers = self._ask({"do": "report"})
        return [LinkReport.model_validate(each) for each in answers]

    def start_ray(self) -> Wan:
        """Starts a Ray node on every host, the head on the first.

        Raises:
            CrosspipeError: one does not start.
        """
        address = ray_nodes.start(self.name, self.spec)
        lifecycle.note_ray(self.name, address)
        return Wan(self.name, self.spec, address)

    def _namespace(self, place: str) -> str:
        return lifecycle.namespace(self.name, self.host(place).name)

    def _tell(self, src: str, dst: str, one_way: bool, **request: object) -> None:
        for pair in [(src, dst)] if one_way else [(src, dst), (dst, src)]:
            if pair not in self.spec.directed_links:
                known = sorted("-".join(each) for each in self.spec.directed_links)
                raise InputError(f"no link '{'-'.join(pair)}' in this WAN; links are {known}")
            self._ask({**request, "src": pair[0], "dst": pair[1]})

    def _ask(self, request: dict[str, Any]) -> Any:
        return control.ask(state.folder(self.name), request)


def attach(name: str) -> Wan:
    """A WAN that another process has made.

    Raises:
        InputError: there is none of this name.
        CrosspipeError: it has broken down.
    """
    state.check_name(name)
    known = state.read(name)
    if known is None:
        raise InputError(f"no WAN named '{name}' is up; make one with `crosspipe wan up`")
    if known.is_orphan or known.emulator is None:
        raise CrosspipeError(f"the WAN '{name}' is broken; remove it with `crosspipe wan down`")
    return Wan(name, known.spec, known.ray_address)


@contextmanager
def emulated_wan(
    spec: WanSpec, *, name: str | None = None, with_ray: bool = False
) -> Iterator[Wan]:
    """A WAN for a block of code; if this process is killed, the WAN removes itself.

    Args:
        spec: what it looks like.
        name: default: one that belongs to this process.
        with_ray: also start a Ray node on every host.

    Raises:
        InputError: this machine cannot, or a WAN of this name is up.
        CrosspipeError: something does not start; nothing is left.
    """
    name = name or f"process-{os.getpid()}"
    wan = make(spec, name=name, with_ray=with_ray)
    try:
        yield wan
    finally:
        lifecycle.down(name)


def make(spec: WanSpec, *, name: str, with_ray: bool) -> Wan:
    """A WAN that lives as long as this process, or until ``lifecycle.down``; raises as above."""
    lifecycle.up(spec, name=name)
    try:
        wan = Wan(name, spec)
        return wan.start_ray() if with_ray else wan
    except BaseException:
        lifecycle.down(name)
        raise
