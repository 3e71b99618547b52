"""Links as they were measured: a dated file that becomes the links of a problem.

`crosspipe probe` writes it (version 1, JSON), planning reads it and refuses it when it is too old.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import AwareDatetime, Field

from crosspipe_ray.carriers import MAX_STREAMS, Carrier, TransportName
from crosspipe_ray.errors import InputError
from crosspipe_ray.files import json_text, write_atomically
from crosspipe_ray.parsing import parse_model, read_json
from crosspipe_ray.problem import Link, Record
from crosspipe_ray.topology import Route

End = int | str

# A line that is further off than this, on average, gives way to the points themselves.
_GOOD_RESIDUAL = 0.03
_US_PER_S = 1e6


class Estimate(Record):
    """A median and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Quantiles(Record):
    """How much later than the fastest one messages came, in microseconds."""

    p50: float
    p95: float
    p99: float


class SizePoint(Record):
    """Messages of one size."""

    num_bytes: int = Field(gt=0)
    delay_us: Estimate = Field(description="a lone message: sent to arrived")
    bandwidth_bytes_per_s: Estimate = Field(description="a train: bytes over time per message")
    num_samples: int = Field(gt=0, description="lone messages and trains")

    @property
    def occupancy_us(self) -> float:
        """Time per message of a train."""
        return self.num_bytes / self.bandwidth_bytes_per_s.value * _US_PER_S


class MeasuredLink(Record):
    """One directed link over one transport.

    In the words of the alpha-beta model a message of n bytes takes alpha + beta n, with
    ``alpha = latency_us + message_overhead_us`` and ``beta = 1 / bandwidth_bytes_per_s``.
    """

    src: End = Field(description="rank, or region")
    dst: End
    transport: TransportName
    num_streams: int = Field(1, ge=1, le=MAX_STREAMS, description="connections, over streams")
    channel: str | None = Field(None, description="found to be shared with other links")
    latency_us: Estimate = Field(description="of the smallest messages")
    message_overhead_us: Estimate = Field(description="fitted to the trains of all sizes")
    bandwidth_bytes_per_s: Estimate = Field(description="likewise")
    residual: float = Field(ge=0, description="mean relative distance of the trains from the fit")
    jitter_us: Quantiles
    has_common_clock: bool = Field(
        description="false: half of the fastest round trip counts as the fastest way"
    )
    num_samples: int = Field(gt=0)
    latency_samples_us: tuple[float, ...]
    points: tuple[SizePoint, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """As in ``us->eu``."""
        return f"{self.src}->{self.dst}"

    @property
    def carrier(self) -> Carrier:
        """What it was measured with."""
        return Carrier(self.transport, self.num_streams)

    @property
    def is_line(self) -> bool:
        """Whether overhead and bandwidth say it all; else the points have to."""
        return self.residual <= _GOOD_RESIDUAL

    def latency_at(self, num_bytes: int) -> float:
        """Latency of messages of a size: what a lone one takes beyond its time on the channel.

        A transport may need more round trips for large messages, as object transfer does.
        """
        sizes = [point.num_bytes for point in self.points]
        latencies = [
            max(0.0, point.delay_us.value - self._occupancy_us(point)) for point in self.points
        ]
        return float(np.interp(num_bytes, sizes, latencies))

    def delay_us(self, num_bytes: int) -> float:
        """What planning takes a lone message for: its time on the channel, and the latency."""
        occupancy_ns = Route(0, 0, self.link()).occupancy_ns(num_bytes)
        return occupancy_ns / 1000 + self.latency_at(num_bytes)

    def link(self, *, message_bytes: int | None = None) -> Link:
        """As a link of a problem.

        Args:
            message_bytes: size of the messages whose latency counts; default: the smallest.
        """
        latency_us = self.latency_us.value
        if message_bytes is not None:
            latency_us = self.latency_at(message_bytes)
        shift_us = latency_us - self.latency_us.value
        return Link(
            src=self.src,
            dst=self.dst,
            channel=self.channel,
            latency_us=latency_us,
            message_overhead_us=self.message_overhead_us.value,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s.value if self.is_line else None,
            bandwidth_curve=None if self.is_line else self._curve(),
            latency_samples_us=tuple(
                max(0.0, sample + shift_us) for sample in self.latency_samples_us
            ),
            transport=self.transport,
            streams=self.num_streams if self.transport == "streams" else None,
        )

    def _occupancy_us(self, point: SizePoint) -> float:
        """Of the link that this becomes."""
        overhead_us = self.message_overhead_us.value
        if self.is_line:
            return overhead_us + point.num_bytes / self.bandwidth_bytes_per_s.value * _US_PER_S
        return max(overhead_us, point.occupancy_us)

    def _curve(self) -> tuple[tuple[int, float], ...]:
        """Bandwidth by size, on top of the overhead; small messages may take no more than that."""
        overhead_us = self.message_overhead_us.value
        curve = [
            (point.num_bytes, point.num_bytes / (point.occupancy_us - overhead_us) * _US_PER_S)
            for point in self.points
            if point.occupancy_us > overhead_us
        ]
        largest = self.points[-1]
        return tuple(curve) or ((largest.num_bytes, largest.bandwidth_bytes_per_s.value),)


class HostFacts(Record):
    """Where a rank was when it measured."""

    name: str
    region: str
    kernel: str
    num_cores: int
    python: str
    torch: str
    ray: str
    congestion_control: str | None = Field(None, description="of TCP; null: not known")
    boot_id: str | None = Field(None, description="equal: one kernel, one clock")


class LinkProfile(Record):
    """What `crosspipe probe` found, and when."""

    version: Literal[1] = 1
    measured_at: AwareDatetime
    max_age_hours: float = Field(168.0, gt=0, description="planning refuses it later on")
    hosts: tuple[HostFacts, ...] = Field(description="by rank")
    links: tuple[MeasuredLink, ...]


def read_link_profile(
    path: Path, *, allow_old: bool = False, now: datetime | None = None
) -> LinkProfile:
    """Reads a profile.

    Args:
        path: that `crosspipe probe` wrote.
        allow_old: take it even when it is older than its limit.
        now: default: the present.

    Raises:
        InputError: one line that names the file and the field, or how old it is.
    """
    profile = parse_model(
        LinkProfile, read_json(path, error=InputError), source=str(path), error=InputError
    )
    age = (now or datetime.now(timezone.utc)) - profile.measured_at
    if age > timedelta(hours=profile.max_age_hours) and not allow_old:
        raise InputError(
            f"{path}: measured {age / timedelta(hours=1):.0f} h ago, its limit is "
            f"{profile.max_age_hours:g} h; run `crosspipe probe` again, or give --allow-old"
        )
    return profile


def write_link_profile(profile: LinkProfile, path: Path) -> None:
    """Writes a profile.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    write_atomically(path, json_text(profile.model_dump(mode="json")))
