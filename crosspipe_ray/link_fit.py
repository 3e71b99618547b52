"""From what the receiver of one lane saw to the numbers of the link model. Pure numpy.

The model is the simulator's: a message of n bytes occupies its channel for ``overhead + n /
bandwidth`` and arrives ``latency`` later. A train of messages, sent back to back, shows the
occupancy; a lone message shows the delay, which is latency and occupancy together.

Medians and least absolute deviations: a few stalls, however long, change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

_NS_PER_US = 1000.0
_LEAST_US = 1e-3  # the clocks' own step: nothing is measured to be faster
# Two links that share nothing keep 2.0 of their rates when both are busy, two on one channel 1.0.
_SHARED_BELOW = 1.5


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and the messages that came for it; times in nanoseconds.

    Attributes:
        num_bytes: of each message.
        asked_ns: when the request was handed over, on the receiver's clock.
        heard_ns: when it was there, on the sender's clock.
        sent_ns: when the first message was handed over, on the sender's clock.
        arrived_ns: when each message was there, on the receiver's clock.
    """

    num_bytes: int
    asked_ns: int
    heard_ns: int
    sent_ns: int
    arrived_ns: tuple[int, ...]


class Line(NamedTuple):
    """``intercept + slope * x``; ``residual`` is the mean relative distance of the points."""

    intercept: float
    slope: float
    residual: float


def clock_offset_ns(exchanges: Sequence[Exchange]) -> float:
    """Sender's clock minus receiver's, if the fastest way there and back are equally long.

    An asymmetry of the two ways cannot be told from an offset: half of it is the error.
    """
    ways = [
        (each.heard_ns - each.asked_ns, each.arrived_ns[0] - each.sent_ns) for each in exchanges
    ]
    return (min(there for there, _ in ways) - min(back for _, back in ways)) / 2


def delays_us(exchanges: Iterable[Exchange], *, offset_ns: float = 0.0) -> Samples:
    """From handing over the first message to its arrival, for each exchange.

    Args:
        exchanges: of one size.
        offset_ns: sender's clock minus receiver's.
    """
    delays = [each.arrived_ns[0] - each.sent_ns + offset_ns for each in exchanges]
    return np.maximum(np.array(delays, dtype=float) / _NS_PER_US, _LEAST_US)


def occupancies_us(exchanges: Iterable[Exchange]) -> Samples:
    """Time per message of each train: from the first arrival to the last, which needs one clock."""
    spacings = [
        (each.arrived_ns[-1] - each.arrived_ns[0]) / (len(each.arrived_ns) - 1)
        for each in exchanges
        if len(each.arrived_ns) > 1
    ]
    return np.maximum(np.array(spacings, dtype=float) / _NS_PER_US, _LEAST_US)


def fit_line(x: Sequence[float] | Samples, y: Sequence[float] | Samples) -> Line:
    """The line, nowhere falling and not below 0 at 0, with the least sum of relative deviations.

    Relative, so that small messages count as much as large ones. A best line goes through two of
    the points, or through one where a bound holds: all of them are tried.

    >>> fit_line([0, 10, 20, 30], [5, 25, 45, 1000])[:2]
    (5.0, 2.0)

    Raises:
        ValueError: there is no point.
    """
    points_x, points_y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not points_x.size:
        raise ValueError("a line needs a point")
    intercepts, slopes = _candidates(points_x, points_y)
    deviations = np.abs(intercepts[:, None] + np.outer(slopes, points_x) - points_y)
    residuals = (deviations / np.maximum(points_y, _LEAST_US)).mean(axis=1)
    best = int(residuals.argmin())
    return Line(float(intercepts[best]), float(slopes[best]), float(residuals[best]))


def _candidates(x: Samples, y: Samples) -> tuple[Samples, Samples]:
    """Intercepts and slopes of the lines through two points, and through one point and a bound."""
    first, second = np.triu_indices(x.size, k=1)
    differ = x[first] != x[second]
    first, second = first[differ], second[differ]
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    intercepts = y[first] - slopes * x[first]
    allowed = (slopes >= 0) & (intercepts >= 0)
    from_origin = y[x > 0] / x[x > 0]
    return (
        np.concatenate([intercepts[allowed], y, np.zeros(from_origin.size)]),
        np.concatenate([slopes[allowed], np.zeros(y.size), from_origin]),
    )


def bootstrap(
    samples: Sequence[Samples],
    statistic: Callable[[Sequence[Samples]], Sequence[float]],
    *,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 200,
) -> list[tuple[float, float]]:
    """Confidence intervals of statistics of several samples, by the percentile bootstrap.

    Args:
        samples: each is drawn from by itself, with replacement.
        statistic: its values for such samples.
        seed: of the draws.
        confidence: probability that an interval is to cover.
        num_resamples: how often they are drawn.

    Returns:
        (low, high) of each value.

    Source: Efron, B. (1979), "Bootstrap methods: another look at the jackknife".
    """
    random = np.random.default_rng(seed)
    values = [
        statistic([random.choice(sample, sample.size) for sample in samples])
        for _ in range(num_resamples)
    ]
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(np.array(values, dtype=float), [tail, 1 - tail], axis=0)
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def share_a_channel(alone: tuple[float, float], together: tuple[float, float]) -> bool:
    """Whether two links are one channel, by the rates that each has alone and beside the other.

    >>> share_a_channel((100, 100), (98, 97)), share_a_channel((100, 40), (55, 19))
    (False, True)
    """
    kept = sum(busy / free for free, busy in zip(alone, together, strict=True))
    return kept < _SHARED_BELOW


def groups_of(names: Sequence[str], sharing: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names each group of links that share, pair by pair; links that share nothing are left out.

    >>> groups_of(["a", "b", "c", "d"], [("a", "b"), ("b", "d")])
    {'a': 'a + b + d', 'b': 'a + b + d', 'd': 'a + b + d'}
    """
    groups = {name: {name} for name in names}
    for first, second in sharing:
        merged = groups[first] | groups[second]
        groups |= dict.fromkeys(merged, merged)
    return {
        name: " + ".join(each for each in names if each in group)
        for name, group in groups.items()
        if len(group) > 1
    }
