"""What a run has shown links to be: the latency and occupancy that explain its arrivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.problem import Link, Problem
from crosspipe_ray.timeline import Timeline
from crosspipe_ray.topology import topology_of

Samples = NDArray[np.float64]

# Another occupancy than the planned one has to explain the arrivals by so much better.
_CLEARLY = 0.8
_LEAST_FACTOR = 0.01
_QUANTILES = np.linspace(0, 1, 21)


class _Flight(NamedTuple):
    """A message: handed over, there, the one before it there, and the planned occupancy."""

    start_ns: int
    arrive_ns: int
    before_ns: float
    occupancy_ns: int


@dataclass(frozen=True, slots=True)
class _Flights:
    """All messages of a link.

    By the simulator's model, a message arrives a latency after its occupancy, which begins when it
    is handed over or, if that is later, a latency before the last one's arrival.
    """

    start: Samples
    arrive: Samples
    before: Samples
    occupancy: Samples

    def latencies(self, factor: float) -> Samples:
        """What is left of each message's time, were its occupancy so many times the planned."""
        delays = self.arrive - self.start - factor * self.occupancy
        return np.unique(np.quantile(delays, _QUANTILES).clip(min=0.0))

    def factors(self) -> Samples:
        """By how much the occupancies may be off, by the time between two arrivals."""
        follows = np.isfinite(self.before) & (self.occupancy > 0)
        gaps = (self.arrive - self.before)[follows] / self.occupancy[follows]
        quantiles = np.quantile(gaps, _QUANTILES) if gaps.size else gaps
        return np.unique(quantiles.clip(min=_LEAST_FACTOR))

    def best_latency(self, factor: float) -> tuple[float, float]:
        """The least mean deviation of the arrivals, and the latency that has it."""
        latencies = self.latencies(factor)
        free = np.maximum(self.start + latencies[:, None], self.before)
        deviations = np.abs(free + factor * self.occupancy - self.arrive).mean(axis=1)
        best = int(deviations.argmin())
        return float(deviations[best]), float(latencies[best])


def corrected_links(problem: Problem, timelines: Sequence[Timeline]) -> Problem:
    """The problem with links as the messages of a run saw them.

    A link that carried nothing stays as it is, and so does one without occupancy, but for its
    latency: what a run of one size of messages can tell.

    Args:
        problem: with stages; the plan of the run was made for it.
        timelines: measured on links that were not emulated, of steps of the run.
    """
    flights: dict[int, list[_Flight]] = {}
    for timeline in timelines:
        for index, flight in _flights(problem, timeline):
            flights.setdefault(index, []).append(flight)
    links = list(problem.links)
    for index, seen in flights.items():
        columns = (np.array(column, dtype=float) for column in zip(*seen, strict=True))
        links[index] = _corrected(links[index], _Flights(*columns))
    return problem.model_copy(update={"links": tuple(links)})


def _flights(problem: Problem, timeline: Timeline) -> Iterator[tuple[int, _Flight]]:
    """Messages with the index of their link, each after the one before it on that link."""
    routes = topology_of(problem).routes
    index_of = {id(link): index for index, link in enumerate(problem.links)}
    costs = stage_costs(problem)
    before_ns: dict[int, float] = {}
    for message in sorted(timeline.sends, key=lambda each: each.arrive_ns):
        route = routes.get((message.src, message.dst))
        if route is None:
            continue
        index = index_of[id(route.link)]
        transfer = costs[message.op.stage].transfer(message.op.kind)
        assert transfer is not None, "a SEND has a stage that receives"
        start_ns, arrive_ns = message.start_ns, message.arrive_ns
        before = before_ns.get(index, -np.inf)
        yield index, _Flight(start_ns, arrive_ns, before, transfer.occupancy_ns)
        before_ns[index] = arrive_ns


def _corrected(link: Link, flights: _Flights) -> Link:
    factor = 1.0
    deviation_ns, latency_ns = flights.best_latency(factor)
    choices = [(*flights.best_latency(each), each) for each in flights.factors().tolist()]
    if choices and min(choices)[0] < _CLEARLY * deviation_ns:
        _, latency_ns, factor = min(choices)
    latency_us = latency_ns / 1000
    rate, curve, samples = (
        link.bandwidth_bytes_per_s, link.bandwidth_curve, link.latency_samples_us
    )  # fmt: skip
    return link.model_copy(
        update={
            "latency_us": latency_us,
            "message_overhead_us": link.message_overhead_us * factor,
            "bandwidth_bytes_per_s": rate and rate / factor,
            "bandwidth_curve": curve and tuple((size, each / factor) for size, each in curve),
            "latency_samples_us": samples
            and tuple(max(0.0, each + latency_us - link.latency_us) for each in samples),
        }
    )
