"""From what the receiver of one lane saw to the numbers of the link model. Pure numpy.

The model is the simulator's: a message of n bytes occupies its channel for ``overhead + n /
bandwidth`` and arrives ``latency`` later. A train of messages, sent back to back, shows the
occupancy; a lone message shows the delay, which is latency and occupancy together.

Medians and least absolute deviations: a few stalls, however long, change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

_NS_PER_US = 1000.0
_LEAST_US = 1e-3  # the clocks' own step: nothing is measured to be faster
# Where two loads on one channel take the sum of their times; a busy host alone adds up to a half.
_SHARED_PART = 0.7


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


def occupancies_us(exchanges: Sequence[Exchange]) -> Samples:
    """Time per message of each train.

    That is the trend of its arrivals, or, if longer, what it takes beyond a lone message: a
    transport may move the messages of a train side by side, so that they arrive together. Neither
    needs clocks that agree, nor does a message that stalls change the trend.

    Args:
        exchanges: trains and lone messages of one size.
    """
    lone_ns = [each.arrived_ns[0] - each.sent_ns for each in exchanges if len(each.arrived_ns) == 1]
    lone_median_ns = float(np.median(lone_ns)) if lone_ns else np.inf
    times = []
    for each in exchanges:
        num_gaps = len(each.arrived_ns) - 1
        if num_gaps:
            gap_ns, last_ns = _trend([arrived - each.sent_ns for arrived in each.arrived_ns])
            times.append(max(gap_ns, (last_ns - lone_median_ns) / num_gaps))
    return np.maximum(np.array(times, dtype=float) / _NS_PER_US, _LEAST_US)


def _trend(times: Sequence[int]) -> tuple[float, float]:
    """Median slope between all pairs (Theil and Sen), and the last time by it."""
    values, places = np.array(times, dtype=float), np.arange(len(times))
    first, second = np.triu_indices(places.size, k=1)
    slope = float(np.median((values[second] - values[first]) / (second - first)))
    return slope, float(np.median(values - slope * places)) + slope * (places.size - 1)


def fit_line(x: Sequence[float] | Samples, y: Sequence[float] | Samples) -> Line:
    """The line, nowhere falling and not below 0 at 0, with the least sum of absolute deviations.

    Each is divided by the root of its value: large messages then decide on the slope, and small
    ones on the intercept, also where the truth is no line. A best line goes through two of the
    points, or through one where a bound holds: all of them are tried.

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
    scale = np.maximum(points_y, _LEAST_US)
    best = int((deviations / np.sqrt(scale)).sum(axis=1).argmin())
    residual = (deviations[best] / scale).mean()
    return Line(float(intercepts[best]), float(slopes[best]), float(residual))


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


def resampled_medians(
    samples: Sequence[Samples], *, seed: int, num_resamples: int = 200
) -> NDArray[np.float64]:
    """Medians of samples that are drawn anew from each of the given ones, with replacement.

    Source: Efron, B. (1979), "Bootstrap methods: another look at the jackknife".

    Args:
        samples: each is drawn from by itself.
        seed: of the draws.
        num_resamples: how often they are drawn.

    Returns:
        Shape [num_resamples, number of samples].
    """
    random = np.random.default_rng(seed)
    medians = [
        np.median(random.choice(sample, (num_resamples, sample.size)), axis=1) for sample in samples
    ]
    return np.stack(medians, axis=1)


def interval(values: Sequence[float] | Samples, *, confidence: float = 0.95) -> tuple[float, float]:
    """The middle part of resampled values, as a confidence interval."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(values, dtype=float), [tail, 1 - tail])
    return float(low), float(high)


def share_a_channel(alone_s: tuple[float, float], together_s: float) -> bool:
    """Whether two links are one channel, by how long their loads take alone and at once.

    Loads on links of their own take as long as the longer one; on one channel, as both.

    >>> share_a_channel((1.0, 0.8), 1.1), share_a_channel((1.0, 0.8), 1.7)
    (False, True)
    """
    shorter, longer = sorted(alone_s)
    return together_s > longer + _SHARED_PART * shorter


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
