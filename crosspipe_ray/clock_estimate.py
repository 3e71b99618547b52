"""How other hosts' clocks run against rank 0's, from round trips between them. Pure numpy.

A clock is a straight line over the reference: an offset and a drift. Every round trip bounds it
from both sides, whatever the ways there and back are like: a request is not heard before it was
sent, an answer does not arrive before it left. Among the lines within all bounds, that one is taken
which leaves the fastest way there and the fastest way back as much time as it can, and both equally
much: so a message that queued decides nothing. The other lines are its error.

Source: V. Paxson, "On calibrating measurements of packet transit times" (1998); the drift from the
lower envelope as in S. Moon, P. Skelly, D. Towsley, "Estimation and removal of clock skew from
network delay measurements" (1999), here with both ways at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

ASYMMETRY = (
    "An asymmetry of the two ways cannot be told from an offset: the error allows for any, which "
    "alone is half of the round trip."
)
# Kernels discipline clocks by at most this much; one that runs further off is broken.
_MAX_DRIFT_PPM = 500.0
# Over less, noise would pass for a drift; and the drift within it is nothing.
_LEAST_PERIOD_NS = 1_000_000_000
_TOLERANCE_NS = 1.0
_PPM = 1e-6


class RoundTrip(NamedTuple):
    """A request and its answer, in nanoseconds; the first and the last by the reference clock."""

    asked_ns: int
    heard_ns: int
    answered_ns: int
    arrived_ns: int

    @property
    def way_ns(self) -> int:
        """Time on the way, there and back."""
        return self.arrived_ns - self.asked_ns - (self.answered_ns - self.heard_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClock:
    """A host's clock against the reference, in the period in which it was looked at.

    Attributes:
        at_ns: a moment of the period, by the reference.
        offset_ns: this clock minus the reference, then.
        drift_ppm: by how much faster it runs.
        error_ns: the offset is not further off at any moment of the period, however asymmetric the
            ways are, unless the clock was set or its drift changed meanwhile.
        drift_error_ppm: nor is the drift.
        round_trip_ns: time on the way of the fastest round trip.
    """

    at_ns: int
    offset_ns: int
    drift_ppm: float = 0.0
    error_ns: float = 0.0
    drift_error_ppm: float = 0.0
    round_trip_ns: int = 0

    def to_reference(self, time_ns: int) -> int:
        """A time by this clock, as the reference has it.

        >>> HostClock(at_ns=1_000, offset_ns=500, drift_ppm=100.0).to_reference(1_001_600)
        1001000
        """
        undrifted_ns = time_ns - self.offset_ns
        drift = self.drift_ppm * _PPM
        return undrifted_ns - round((undrifted_ns - self.at_ns) * drift / (1 + drift))

    def from_reference(self, time_ns: int) -> int:
        """A time by the reference, as this clock has it."""
        drift_ns = round((time_ns - self.at_ns) * self.drift_ppm * _PPM)
        return time_ns + self.offset_ns + drift_ns


def estimate_clock(round_trips: Sequence[RoundTrip]) -> HostClock:
    """The clock at the far end of some round trips; a drift needs some before and some after a run.

    Args:
        round_trips: in any order, with any noise on top of the fastest ones; dozens, since the
            effort grows with the third power.

    Raises:
        ValueError: there is none.
    """
    if not round_trips:
        raise ValueError("a clock needs a round trip")
    start_ns = min(each.asked_ns for each in round_trips)
    end_ns = max(each.arrived_ns for each in round_trips)
    bounds = _Bounds.of(round_trips, at_ns=start_ns)
    drifts = bounds.candidates()
    room = bounds.room(drifts)
    best = 0.0
    if end_ns - start_ns >= _LEAST_PERIOD_NS:
        widest = drifts[room >= room.max() - _TOLERANCE_NS]
        best = float(widest.min() + widest.max()) / 2
    [upper], [lower] = bounds.intercepts(np.array([best]))
    # Bounds that no line keeps are those of a clock that was set: as wrong as that is the estimate.
    misfit = max(0.0, -float(room.max()))
    possible = drifts[room >= -misfit - _TOLERANCE_NS]
    errors = [
        bounds.error(possible, float(best), float(upper + lower) / 2, at=float(moment))
        for moment in (0, end_ns - start_ns)
    ]
    return HostClock(
        at_ns=start_ns,
        offset_ns=bounds.origin_ns + round(float(upper + lower) / 2),
        drift_ppm=best / _PPM,
        error_ns=max(errors) + misfit,
        drift_error_ppm=float(np.abs(possible - best).max()) / _PPM,
        round_trip_ns=min(each.way_ns for each in round_trips),
    )


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Points that the offset's line runs below, and points that it runs above.

    Attributes:
        origin_ns: an offset that was taken off all of them, so that floats suffice.
    """

    origin_ns: int
    upper_x: Samples
    upper_y: Samples
    lower_x: Samples
    lower_y: Samples

    @classmethod
    def of(cls, round_trips: Sequence[RoundTrip], *, at_ns: int) -> _Bounds:
        origin_ns = round_trips[0].heard_ns - round_trips[0].asked_ns

        def floats(values: Sequence[int]) -> Samples:
            return np.array(values, dtype=float)

        return cls(
            origin_ns=origin_ns,
            upper_x=floats([each.asked_ns - at_ns for each in round_trips]),
            upper_y=floats([each.heard_ns - each.asked_ns - origin_ns for each in round_trips]),
            lower_x=floats([each.arrived_ns - at_ns for each in round_trips]),
            lower_y=floats(
                [each.answered_ns - each.arrived_ns - origin_ns for each in round_trips]
            ),
        )

    def candidates(self) -> Samples:
        """Slopes through any two points: a best or an outermost line has one of them."""
        x, y = np.append(self.upper_x, self.lower_x), np.append(self.upper_y, self.lower_y)
        first, second = np.triu_indices(x.size, k=1)
        differ = x[first] != x[second]
        first, second = first[differ], second[differ]
        slopes = (y[second] - y[first]) / (x[second] - x[first])
        limit = _MAX_DRIFT_PPM * _PPM
        return np.unique(np.concatenate([slopes.clip(-limit, limit), [-limit, 0.0, limit]]))

    def intercepts(self, slopes: Samples) -> tuple[Samples, Samples]:
        """Highest and lowest intercept that the bounds leave to lines of these slopes."""
        upper = (self.upper_y - np.outer(slopes, self.upper_x)).min(axis=1)
        lower = (self.lower_y - np.outer(slopes, self.lower_x)).max(axis=1)
        return upper, lower

    def room(self, slopes: Samples) -> Samples:
        """By how much a line of each slope may be moved up and down; below 0: there is none."""
        upper, lower = self.intercepts(slopes)
        return upper - lower

    def error(self, slopes: Samples, slope: float, intercept: float, *, at: float) -> float:
        """How far other lines are from the chosen one at a moment."""
        upper, lower = self.intercepts(slopes)
        chosen = intercept + slope * at
        above, below = (upper + slopes * at).max() - chosen, chosen - (lower + slopes * at).min()
        return float(max(above, below, 0.0))


def first_ranks(clock_ids: Sequence[str]) -> dict[str, int]:
    """The first rank of each clock that is not rank 0's.

    >>> first_ranks(["us", "us", "eu", "eu", "asia"])
    {'eu': 2, 'asia': 4}
    """
    first = {clock_id: clock_ids.index(clock_id) for clock_id in dict.fromkeys(clock_ids)}
    return {clock_id: rank for clock_id, rank in first.items() if clock_id != clock_ids[0]}


def clocks_of_ranks(
    clock_ids: Sequence[str], round_trips: Mapping[int, Sequence[RoundTrip]]
) -> dict[int, HostClock]:
    """The clock of every rank whose clock is not rank 0's.

    Args:
        clock_ids: by rank; equal where ranks share a clock.
        round_trips: from rank 0 to the first rank of each other clock.
    """
    measured = {
        clock_id: estimate_clock(round_trips[rank])
        for clock_id, rank in first_ranks(clock_ids).items()
    }
    return {rank: measured[name] for rank, name in enumerate(clock_ids) if name in measured}
