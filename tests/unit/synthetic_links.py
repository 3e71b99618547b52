"""What the receiver of a link would see whose numbers are known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from crosspipe_ray.carriers import Carrier
from crosspipe_ray.links.estimate import measured_link
from crosspipe_ray.links.fit import Exchange
from crosspipe_ray.links.profile import HostFacts, LinkProfile, MeasuredLink

COLLECTIVE = Carrier()
SIZES = (1, 1024, 16 * 1024, 128 * 1024, 1024 * 1024, 8 * 1024 * 1024)


@dataclass(frozen=True, kw_only=True)
class TrueLink:
    """The numbers to be found again; ``outliers`` is the share of messages that stall."""

    latency_us: float = 30_000.0
    overhead_us: float = 200.0
    bandwidth_bytes_per_s: float = 125e6
    jitter_us: float = 0.0
    outliers: float = 0.0
    clock_offset_us: float = 0.0

    def exchanges(self, seed: int = 0) -> list[Exchange]:
        random = np.random.default_rng(seed)
        plan = [(1, 1)] * 40 + [(size, count) for size in SIZES for count in (1, 8)] * 9
        return [self.exchange(size, count, random) for size, count in plan]

    def exchange(self, num_bytes: int, count: int, random: np.random.Generator) -> Exchange:
        occupancy_us = self.overhead_us + num_bytes / self.bandwidth_bytes_per_s * 1e6
        asked_us = float(random.uniform(0, 1e9))
        heard_us = asked_us + self._delay_us(random)
        sent_us = heard_us + 50.0
        arrivals = [
            sent_us + (index + 1) * occupancy_us + self._delay_us(random) for index in range(count)
        ]
        return Exchange(
            num_bytes=num_bytes,
            asked_ns=round(asked_us * 1000),
            heard_ns=round((heard_us + self.clock_offset_us) * 1000),
            sent_ns=round((sent_us + self.clock_offset_us) * 1000),
            arrived_ns=tuple(round(each * 1000) for each in np.maximum.accumulate(arrivals)),
        )

    def _delay_us(self, random: np.random.Generator) -> float:
        stall_us = 500_000.0 * (random.random() < self.outliers)
        return self.latency_us + self.jitter_us * random.random() + stall_us


def measured(
    link: TrueLink,
    *,
    src: int | str = "us",
    dst: int | str = "eu",
    clocks_agree: bool = True,
    carrier: Carrier = COLLECTIVE,
) -> MeasuredLink:
    return measured_link(
        link.exchanges(), src=src, dst=dst, carrier=carrier, has_common_clock=clocks_agree
    )


def profile_of(
    *links: MeasuredLink,
    measured_at: datetime | None = None,
    regions: tuple[str, ...] = ("us", "eu"),
) -> LinkProfile:
    hosts = tuple(
        HostFacts(
            name="host",
            region=region,
            kernel="6.1",
            num_cores=8,
            python="3.12",
            torch="2.9",
            ray="2.51",
        )
        for region in regions
    )
    when = measured_at or datetime.now(timezone.utc)
    return LinkProfile(measured_at=when, hosts=hosts, links=links)
