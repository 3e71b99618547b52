"""From what the receiver of a lane saw to a measured link with its confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from crosspipe_ray.carriers import Carrier
from crosspipe_ray.links.fit import (
    Exchange,
    Line,
    Samples,
    clock_offset_ns,
    delays_us,
    fit_line,
    interval,
    occupancies_us,
    resampled_medians,
)
from crosspipe_ray.links.profile import (
    End,
    Estimate,
    MeasuredLink,
    Quantiles,
    SizePoint,
)

_US_PER_S = 1e6
_LEAST_US_PER_BYTE = 1e-9  # where trains take no longer for more bytes


def measured_link(
    exchanges: Sequence[Exchange],
    *,
    src: End,
    dst: End,
    carrier: Carrier,
    has_common_clock: bool,
    seed: int = 0,
) -> MeasuredLink:
    """Estimates a link from what its receiver saw.

    Args:
        exchanges: lone messages and trains of each size.
        src: rank or region of the sender.
        dst: of the receiver.
        carrier: of the messages.
        has_common_clock: whether both ends are on one host.
        seed: of the confidence intervals.
    """
    by_size = _by_size(exchanges)
    lone_smallest = [each for each in by_size[0] if len(each.arrived_ns) == 1]
    offset_ns = 0.0 if has_common_clock else clock_offset_ns(lone_smallest)
    points = tuple(_point(group, offset_ns, seed) for group in by_size)
    sizes = [point.num_bytes for point in points]
    trains = [occupancies_us(group) for group in by_size]
    line = fit_line(sizes, [float(np.median(train)) for train in trains])
    redrawn = [fit_line(sizes, medians) for medians in resampled_medians(trains, seed=seed)]
    delays = delays_us(lone_smallest, offset_ns=offset_ns)
    latencies = np.maximum(delays - (line.intercept + line.slope * sizes[0]), 0.0)
    spread = np.quantile(delays - delays.min(), [0.5, 0.95, 0.99])
    return MeasuredLink(
        src=src,
        dst=dst,
        transport=carrier.transport,
        num_streams=carrier.num_streams,
        latency_us=_median(latencies, seed=seed),
        message_overhead_us=_estimate(line.intercept, [each.intercept for each in redrawn]),
        bandwidth_bytes_per_s=_estimate(_rate(line), [_rate(each) for each in redrawn]),
        residual=line.residual,
        jitter_us=Quantiles(p50=spread[0], p95=spread[1], p99=spread[2]),
        has_common_clock=has_common_clock,
        num_samples=len(exchanges),
        latency_samples_us=tuple(np.round(latencies, 3).tolist()),
        points=points,
    )


def _by_size(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    ordered = sorted(exchanges, key=lambda each: each.num_bytes)
    return [list(group) for _, group in groupby(ordered, key=lambda each: each.num_bytes)]


def _point(exchanges: Sequence[Exchange], offset_ns: float, seed: int) -> SizePoint:
    lone = [each for each in exchanges if len(each.arrived_ns) == 1]
    num_bytes = exchanges[0].num_bytes
    return SizePoint(
        num_bytes=num_bytes,
        delay_us=_median(delays_us(lone, offset_ns=offset_ns), seed=seed),
        bandwidth_bytes_per_s=_median(num_bytes * _US_PER_S / occupancies_us(exchanges), seed=seed),
        num_samples=len(exchanges),
    )


def _rate(line: Line) -> float:
    return _US_PER_S / max(line.slope, _LEAST_US_PER_BYTE)


def _median(sample: Samples, *, seed: int) -> Estimate:
    return _estimate(float(np.median(sample)), resampled_medians([sample], seed=seed)[:, 0])


def _estimate(value: float, redrawn: Sequence[float] | Samples) -> Estimate:
    low, high = interval(redrawn)
    return Estimate(value=value, low=min(low, value), high=max(high, value))
