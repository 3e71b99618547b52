"""What is wrong with a cluster, and the command that mends it: pure functions over facts.

Each check takes the facts of all nodes and yields findings. Settings of TCP only matter to nodes
that have a long way to another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

_MIB = 1024 * 1024
_LONG_RTT_US = 2_000.0
# Of a socket buffer the kernel offers about half as window, and it must hold what is in flight.
_BUFFER_PER_BDP = 2
_OFFSET_LIMIT_US = 1_000.0


class Severity(IntEnum):
    """How bad a finding is."""

    ERROR = 0  # a run would fail
    WARNING = 1  # a run would be slow, open to others, or its timelines wrong
    NOTE = 2  # worth knowing


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend.

    Attributes:
        severity: how bad it is.
        where: node, or nodes.
        problem: one line.
        command: what mends it, to be run on that node.
    """

    severity: Severity
    where: str
    problem: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From one node to another, over a TCP connection to a port that the other has just opened.

    Attributes:
        peer: address.
        round_trip_us: the fastest; None: it could not be reached.
        clock_offset_us: peer's clock minus this one's, to within half of the round trip.
    """

    peer: str
    round_trip_us: float | None
    clock_offset_us: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node of the cluster; None stands for what could not be found out.

    Attributes:
        address: by which other nodes reach it.
        labels: of the Ray node.
        versions: of python, ray and torch.
        boot_id: the same for nodes of one host.
        has_token_auth: whether Ray asks for its token.
        has_token_file: whether `ray start --head` would turn that on by itself.
        congestion_control: of TCP.
        available_congestion_controls: that can be chosen.
        tcp_rmem_bytes: largest receive buffer.
        tcp_wmem_bytes: largest send buffer.
        has_slow_start_after_idle: whether an idle connection starts slowly again.
        is_clock_synchronised: by NTP or the like.
        num_ray_gpus: that Ray hands out.
        gpus: names of those that torch sees.
        nccl: version.
        ways: to all other nodes.
    """

    address: str
    labels: Mapping[str, str]
    versions: Mapping[str, str]
    boot_id: str | None = None
    has_token_auth: bool = True
    has_token_file: bool = False
    congestion_control: str | None = None
    available_congestion_controls: tuple[str, ...] = ()
    tcp_rmem_bytes: int | None = None
    tcp_wmem_bytes: int | None = None
    has_slow_start_after_idle: bool | None = None
    is_clock_synchronised: bool | None = None
    num_ray_gpus: float = 0.0
    gpus: tuple[str, ...] = ()
    nccl: str | None = None
    ways: tuple[Way, ...] = ()

    @property
    def longest_round_trip_us(self) -> float:
        """To any node that it reaches."""
        return max((way.round_trip_us or 0.0 for way in self.ways), default=0.0)

    @property
    def has_a_long_way(self) -> bool:
        """Whether settings of TCP matter."""
        return self.longest_round_trip_us >= _LONG_RTT_US


def diagnose(
    nodes: Sequence[NodeFacts], *, label: str, bandwidth_bytes_per_s: float
) -> list[Finding]:
    """All findings, the worst first.

    Args:
        nodes: of the cluster.
        label: node label that holds the region's name.
        bandwidth_bytes_per_s: that one connection is to reach on the longest way.
    """
    findings = [
        *check_versions(nodes),
        *check_labels(nodes, label=label),
        *check_ports(nodes),
        *check_auth(nodes),
        *check_buffers(nodes, bandwidth_bytes_per_s=bandwidth_bytes_per_s),
        *check_congestion_control(nodes),
        *check_slow_start(nodes),
        *check_clocks(nodes),
        *check_gpus(nodes),
    ]
    return sorted(findings, key=lambda finding: finding.severity)


def check_versions(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Python, ray and torch are those of the first node; a patch release of Python may differ."""
    first = nodes[0]
    for node in nodes[1:]:
        for name, version in node.versions.items():
            wanted = first.versions[name]
            if _relevant(name, version) != _relevant(name, wanted):
                command = f"pip install {name}=={wanted.partition('+')[0]}"
                yield Finding(
                    Severity.ERROR,
                    node.address,
                    f"{name} {version}, but {wanted} on {first.address}",
                    f"uv python install {wanted}" if name == "python" else command,
                )


def _relevant(name: str, version: str) -> str:
    """Without the patch release of Python, and the build that packages name after a plus."""
    return version.rpartition(".")[0] if name == "python" else version.partition("+")[0]


def check_labels(nodes: Sequence[NodeFacts], *, label: str) -> Iterator[Finding]:
    """Every node has its region's label; one without gets no rank."""
    without = [node for node in nodes if label not in node.labels]
    severity = Severity.ERROR if len(without) == len(nodes) else Severity.NOTE
    for node in without:
        yield Finding(
            severity,
            node.address,
            f"no label {label}: no rank will run here",
            f"ray stop && ray start --address=HEAD:6379 --labels {label}=NAME",
        )


def check_ports(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Every node reaches a port that another has opened, as the ranks' connections have to."""
    for node in nodes:
        for way in node.ways:
            if way.round_trip_us is None:
                yield Finding(
                    Severity.ERROR,
                    way.peer,
                    f"a port opened here cannot be reached from {node.address}",
                    f"sudo iptables -I INPUT -p tcp -s {node.address} -j ACCEPT",
                )


def check_auth(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Ray asks for a token where several hosts make up the cluster; no node is in between."""
    for node in nodes:
        if node.has_token_auth:
            continue
        if len({each.boot_id for each in nodes}) > 1:
            yield Finding(
                Severity.WARNING,
                node.address,
                "Ray runs code for whoever reaches its ports: token authentication is off",
                "ray get-auth-token --generate && export RAY_AUTH_MODE=token, then restart Ray "
                "with the same token on every node",
            )
        if node.has_token_file:
            yield Finding(
                Severity.NOTE,
                node.address,
                "~/.ray/auth_token exists: `ray start --head` would ask for it, and nodes without "
                "it could not join",
                "export RAY_AUTH_MODE=disabled, or =token, on every node",
            )


def check_buffers(nodes: Sequence[NodeFacts], *, bandwidth_bytes_per_s: float) -> Iterator[Finding]:
    """Socket buffers may grow to what is in flight on the longest way."""
    for node in _far(nodes):
        product = bandwidth_bytes_per_s * node.longest_round_trip_us / 1e6
        for name, largest in (("rmem", node.tcp_rmem_bytes), ("wmem", node.tcp_wmem_bytes)):
            if largest is None or largest >= _BUFFER_PER_BDP * product:
                continue
            rate = largest / _BUFFER_PER_BDP / node.longest_round_trip_us * 8
            yield Finding(
                Severity.WARNING,
                node.address,
                f"tcp_{name} ends at {largest / _MIB:.1f} MiB: one connection gets about "
                f"{rate:.0f} Mbit/s of {bandwidth_bytes_per_s * 8 / 1e6:.0f} over "
                f"{node.longest_round_trip_us / 1000:.0f} ms",
                f'sudo sysctl -w net.ipv4.tcp_{name}="4096 131072 {_buffer_bytes(product)}"',
            )


def _buffer_bytes(product: float) -> int:
    """The power of two that leaves room above the need."""
    size = _MIB
    while size < 2 * _BUFFER_PER_BDP * product:
        size *= 2
    return size


def check_congestion_control(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """BBR on long ways: what counts losses collapses at 0.1 % of them."""
    for node in _far(nodes):
        if node.congestion_control in (None, "bbr"):
            continue
        load = "" if "bbr" in node.available_congestion_controls else "sudo modprobe tcp_bbr && "
        yield Finding(
            Severity.WARNING,
            node.address,
            f"congestion control {node.congestion_control}: a lossy way of "
            f"{node.longest_round_trip_us / 1000:.0f} ms is slow with it",
            f"{load}sudo sysctl -w net.ipv4.tcp_congestion_control=bbr",
        )


def check_slow_start(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Connections that were idle between two steps go on at their speed."""
    for node in _far(nodes):
        if node.has_slow_start_after_idle:
            yield Finding(
                Severity.WARNING,
                node.address,
                "idle connections start slowly again: the first messages of a step are late",
                "sudo sysctl -w net.ipv4.tcp_slow_start_after_idle=0",
            )


def check_clocks(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Hosts agree on the time, beyond what a round trip can tell."""
    boots = {node.address: node.boot_id for node in nodes}
    has_several_hosts = len(set(boots.values())) > 1
    for node in nodes:
        if has_several_hosts and node.is_clock_synchronised is False:
            yield Finding(
                Severity.WARNING,
                node.address,
                "nothing keeps the clock right: timelines of several hosts will not fit together",
                "sudo timedatectl set-ntp true",
            )
        for way in node.ways:
            error_us = (way.round_trip_us or 0.0) / 2
            is_off = abs(way.clock_offset_us) > error_us + _OFFSET_LIMIT_US
            if is_off and node.address < way.peer:  # each pair once
                yield Finding(
                    Severity.WARNING,
                    way.peer,
                    f"clock is {way.clock_offset_us / 1000:+.1f} ms (+-{error_us / 1000:.1f}) off "
                    f"that of {node.address}",
                    "sudo chronyc makestep",
                )


def check_gpus(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """GPUs that Ray hands out are there for torch, with one version of NCCL."""
    nccl = {node.nccl for node in nodes if node.gpus}
    for node in nodes:
        if node.num_ray_gpus > len(node.gpus):
            wanted = node.versions["torch"].partition("+")[0]
            yield Finding(
                Severity.ERROR,
                node.address,
                f"Ray hands out {node.num_ray_gpus:g} GPUs, torch {node.versions['torch']} sees "
                f"{len(node.gpus)}",
                f"nvidia-smi && pip install --force-reinstall torch=={wanted}",
            )
        if node.gpus and len(nccl) > 1:
            yield Finding(
                Severity.ERROR,
                node.address,
                f"NCCL {node.nccl}, but there are {', '.join(sorted(map(str, nccl)))}",
                f"pip install --force-reinstall torch=={nodes[0].versions['torch']}",
            )


def _far(nodes: Iterable[NodeFacts]) -> Iterator[NodeFacts]:
    return (node for node in nodes if node.has_a_long_way)
