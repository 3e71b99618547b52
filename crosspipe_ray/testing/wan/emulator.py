"""The process between the namespaces: reads packets, delays them, writes them.

``python -m crosspipe_ray.testing.wan.emulator NAME`` is started by ``crosspipe wan up``. It stays
in the host's namespace and opens one TUN device in that of each emulated host. When all is open it
goes into the background and prints its process id.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from crosspipe_ray.testing.wan import control, lifecycle, namespaces, packets, state
from crosspipe_ray.testing.wan.delay import Shape
from crosspipe_ray.testing.wan.desk import ControlDesk
from crosspipe_ray.testing.wan.link import Delivery, EmulatedLink
from crosspipe_ray.testing.wan.spec import Host, WanSpec
from crosspipe_ray.testing.wan.tun import open_tun

# So many packets are read at a time: between them, others may have to be delivered.
_MAX_BURST = 16
_LONGEST_SLEEP_S = 1.0


class Emulator:
    """Moves packets between TUN devices.

    Args:
        spec: of the WAN.
        ports: descriptor of the device of each host, by name.
    """

    def __init__(self, spec: WanSpec, ports: dict[str, int]) -> None:
        self.links = {
            pair: EmulatedLink(link.shape, seed="->".join(pair))
            for pair, link in spec.directed_links.items()
        }
        within = {
            (region.name, region.name): EmulatedLink(Shape(), seed="") for region in spec.regions
        }
        self._all_links = self.links | within
        self._readers: dict[int, Callable[[int], None]] = {}
        self._routes = {
            ports[src.name]: self._routes_from(src, spec.hosts, ports) for src in spec.hosts
        }
        for port in ports.values():
            self._readers[port] = self._read

    def _routes_from(
        self, src: Host, hosts: tuple[Host, ...], ports: dict[str, int]
    ) -> dict[bytes, tuple[EmulatedLink, int]]:
        """By destination address: the link to take, and the device at its end."""
        return {
            socket.inet_aton(dst.address): (
                self._all_links[src.region, dst.region],
                ports[dst.name],
            )
            for dst in hosts
            if dst is not src
        }

    def watch(self, descriptor: int, read: Callable[[int], None]) -> None:
        """Calls ``read`` whenever there is something to read."""
        self._readers[descriptor] = read

    def forget(self, descriptor: int) -> None:
        """Ends ``watch``."""
        del self._readers[descriptor]

    def turn(self) -> None:
        """Waits for packets or the next arrival, and does what there is to do."""
        next_ns = min(link.next_arrival_ns for link in self._all_links.values())
        wait_s = min(max(0.0, (next_ns - time.monotonic_ns()) * 1e-9), _LONGEST_SLEEP_S)
        # Not epoll: it waits in whole milliseconds.
        ready, _, _ = select.select(list(self._readers), [], [], wait_s)
        for descriptor in ready:
            self._readers[descriptor](descriptor)
        self._deliver()

    def _read(self, port: int) -> None:
        routes = self._routes[port]
        for _ in range(_MAX_BURST):
            try:
                packet = os.read(port, packets.MAX_BYTES)
            except BlockingIOError:
                return
            way = routes.get(packets.destination(packet))
            if way is not None:  # else it is IPv6, or a broadcast
                link, out = way
                link.push(Delivery(packet, out), now_ns=time.monotonic_ns())

    def _deliver(self) -> None:
        for link in self._all_links.values():
            for packet, port in link.arrived(time.monotonic_ns()):
                # A device that is not up yet refuses packets: nobody is there.
                with suppress(OSError):
                    os.write(port, packet)


def main(name: str) -> None:
    """Emulates a WAN until nobody owns it any more."""
    known = state.read(name)
    assert known is not None, "up() writes it first"
    assert known.owner is not None, "up() is its owner"
    ports = {}
    for host in known.spec.hosts:
        with namespaces.inside(lifecycle.namespace(name, host.name)):
            ports[host.name] = open_tun(lifecycle.DEVICE)
    emulator = Emulator(known.spec, ports)
    ControlDesk(emulator, known.spec.directed_links, control.listen(state.folder(name)))
    owner = os.pidfd_open(known.owner.pid)
    is_over = False

    def look_for_owner(_: int) -> None:
        nonlocal is_over
        emulator.forget(owner)
        now = state.read(name)
        is_over = now is None or now.owner is not None  # without one, it lives until `down`

    emulator.watch(owner, look_for_owner)
    _go_into_background(name)
    while not is_over:
        emulator.turn()
    lifecycle.down(name)


def _go_into_background(name: str) -> None:
    """Returns in a child that nothing of the starter's reaches any more."""
    pid = os.fork()
    if pid:
        os.write(sys.stdout.fileno(), str(pid).encode())
        os._exit(0)
    os.setsid()
    os.chdir("/")
    log = os.open(state.folder(name) / "emulator.log", os.O_WRONLY | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    main(sys.argv[1])
