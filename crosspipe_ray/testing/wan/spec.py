"""What a WAN is to look like: the YAML of ``crosspipe wan up``."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

from pydantic import Field, model_validator

from crosspipe_ray.config import Section
from crosspipe_ray.errors import InputError
from crosspipe_ray.parsing import parse_model, read_yaml
from crosspipe_ray.testing.wan.delay import Shape

_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
# Third and fourth byte of an address number the region and the host, from 1.
_MAX_PER_BYTE = 250
_SUBNET = "10.77"


class LinkSettings(Section):
    """How one direction of a link behaves; the defaults are a link that takes no time."""

    latency_ms: float = Field(0.0, ge=0, le=60_000, description="one way")
    bandwidth_mbit_s: float | None = Field(
        None, gt=0, description="of all streams together; default: no limit"
    )
    jitter_ms: float = Field(
        0.0, ge=0, le=60_000, description="each packet takes up to this longer; order is kept"
    )
    loss: float = Field(0.0, ge=0, le=1, description="probability of each wire segment")
    queue_ms: float = Field(
        100.0, gt=0, description="a packet that would wait longer for the link is dropped"
    )

    @property
    def shape(self) -> Shape:
        """In the units of the emulator."""
        rate = self.bandwidth_mbit_s
        return Shape(
            latency_ns=round(self.latency_ms * 1e6),
            bytes_per_s=None if rate is None else rate * 1e6 / 8,
            jitter_ns=round(self.jitter_ms * 1e6),
            loss=self.loss,
            queue_ns=round(self.queue_ms * 1e6),
        )


class Link(LinkSettings):
    """What lies between two regions."""

    src: str
    dst: str
    both_ways: bool = Field(True, description="false: only from src to dst")
    congestion_control: str | None = Field(
        None, description="of TCP on the routes into this link, as cubic; default: the host's"
    )


class Region(Section):
    """Some hosts with nothing but a fast network between them."""

    name: str = Field(pattern=_NAME)
    num_hosts: int = Field(1, gt=0, le=_MAX_PER_BYTE)
    num_cpus: int = Field(4, gt=0, description="that the Ray node of each host offers")

    @property
    def host_names(self) -> tuple[str, ...]:
        """``us``, or ``us-0``, ``us-1``, ... where there are several."""
        if self.num_hosts == 1:
            return (self.name,)
        return tuple(f"{self.name}-{index}" for index in range(self.num_hosts))


class Host(Section):
    """A network namespace that stands for a machine."""

    name: str
    region: str
    address: str
    num_cpus: int


class WanSpec(Section):
    """Regions, and a link for every ordered pair of them."""

    regions: tuple[Region, ...] = Field(min_length=1, max_length=_MAX_PER_BYTE)
    links: tuple[Link, ...] = ()
    sysctls: dict[str, str | int] = Field(
        {}, description="per host, as net.ipv4.tcp_slow_start_after_idle: 0"
    )

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All hosts, in the order of the regions."""
        return tuple(
            Host(
                name=name,
                region=region.name,
                address=f"{_SUBNET}.{number}.{index}",
                num_cpus=region.num_cpus,
            )
            for number, region in enumerate(self.regions, start=1)
            for index, name in enumerate(region.host_names, start=1)
        )

    @property
    def directed_links(self) -> dict[tuple[str, str], Link]:
        """By (source region, destination region)."""
        found = {}
        for link in self.links:
            found[link.src, link.dst] = link
            if link.both_ways:
                found[link.dst, link.src] = link
        return found

    def subnet(self, region: str) -> str:
        """Of a region's hosts."""
        number = [each.name for each in self.regions].index(region) + 1
        return f"{_SUBNET}.{number}.0/24"

    @model_validator(mode="after")
    def _names_differ(self) -> WanSpec:
        names = [host.name for host in self.hosts] + [
            region.name for region in self.regions if region.num_hosts > 1
        ]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"regions: the name {twice[0]} is given to two regions or hosts")
        return self

    @model_validator(mode="after")
    def _every_pair_has_one_link(self) -> WanSpec:
        names = [region.name for region in self.regions]
        covered = [(link.src, link.dst) for link in self.links]
        covered += [(link.dst, link.src) for link in self.links if link.both_ways]
        for src, dst in covered:
            for end in (src, dst):
                if end not in names:
                    raise ValueError(f"links: {src}-{dst}: no region '{end}'; there are {names}")
            if src == dst or covered.count((src, dst)) > 1:
                raise ValueError(f"links: {src}->{dst} is given twice or leads nowhere")
        for src, dst in permutations(names, 2):
            if (src, dst) not in covered:
                raise ValueError(f"links: none from {src} to {dst}")
        return self


def load_spec(path: Path) -> WanSpec:
    """Reads the YAML of a WAN.

    Raises:
        InputError: one line that names the file and the field.
    """
    raw = read_yaml(path, error=InputError)
    return parse_model(WanSpec, raw, source=str(path), error=InputError)


def mesh(*region_names: str, **settings: float | str | None) -> WanSpec:
    """Regions of one host each, with links that are all alike.

    Args:
        region_names: at least one.
        settings: fields of ``Link``.

    Raises:
        InputError: names the field that is wrong.
    """
    raw = {
        "regions": [{"name": name} for name in region_names],
        "links": [
            {"src": src, "dst": dst, **settings} for src, dst in combinations(region_names, 2)
        ],
    }
    return parse_model(WanSpec, raw, source="wan", error=InputError)
