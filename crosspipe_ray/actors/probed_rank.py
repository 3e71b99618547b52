"""The actor that is one rank while its lanes are measured, and a group of them."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from crosspipe_ray import host
from crosspipe_ray.actors.group import StageGroup
from crosspipe_ray.actors.stage import Stage
from crosspipe_ray.engine.probing import (
    MIB,
    LaneEnd,
    ProbeSettings,
    answer,
    measure_lane,
    pull,
    push,
)
from crosspipe_ray.errors import RunError
from crosspipe_ray.links.fit import Exchange
from crosspipe_ray.links.profile import HostFacts, MeasuredLink
from crosspipe_ray.program import Lane

TIMEOUT_S = 120.0
_LOAD_S = 0.5  # long beside a call's few milliseconds
_LOAD_MESSAGE_BYTES = MIB // 4
_LONGEST_TRAIN = 256  # 64 MiB, which the receiver has to hold


@dataclass(frozen=True, slots=True)
class Load:
    """So many trains of so many messages: what keeps a link busy for a while."""

    num_trains: int
    num_messages: int

    @classmethod
    def of(cls, link: MeasuredLink) -> Load:
        """About half a second on this link."""
        wanted = link.bandwidth_bytes_per_s.value * _LOAD_S / _LOAD_MESSAGE_BYTES
        num_messages = max(8, min(_LONGEST_TRAIN, round(wanted)))
        return cls(max(1, min(16, round(wanted / num_messages))), num_messages)


class ProbedRank(Stage):
    """A rank whose lanes are measured; several may be busy at once."""

    @ray.method
    def facts(self, region: str) -> HostFacts:
        """Where this rank is."""
        return HostFacts(
            name=socket.gethostname(),
            region=region,
            kernel=platform.release(),
            num_cores=len(os.sched_getaffinity(0)),
            congestion_control=host.sysctl("net.ipv4.tcp_congestion_control"),
            boot_id=host.boot_id(),
            **host.versions(),
        )

    @ray.method(concurrency_group="probe")
    def answer(self, peer: int) -> None:
        """Sends to a rank what it asks for."""
        answer(self._end(peer, TIMEOUT_S))

    @ray.method(concurrency_group="probe")
    def measure(self, peer: int, settings: ProbeSettings) -> list[Exchange]:
        """Measures the lane from a rank to this one."""
        return measure_lane(self._end(peer, settings.timeout_s), settings)

    @ray.method(concurrency_group="probe")
    def push(self, peer: int, load: Load) -> None:
        """Keeps the lane to a rank busy, and leaves the way back to others."""
        end = self._end(peer, TIMEOUT_S)
        for _ in range(load.num_trains):
            push(end, num_bytes=_LOAD_MESSAGE_BYTES, num_messages=load.num_messages)

    @ray.method(concurrency_group="probe")
    def pull(self, peer: int, load: Load) -> None:
        """The other end of ``push``."""
        end = self._end(peer, TIMEOUT_S)
        for _ in range(load.num_trains):
            pull(end, num_bytes=_LOAD_MESSAGE_BYTES, num_messages=load.num_messages)

    def _end(self, peer: int, timeout_s: float) -> LaneEnd:
        if self._transport is None:
            raise RunError(f"rank {self._rank} is not connected")
        return LaneEnd(
            transport=self._transport, peer=peer, device=self._device, timeout_s=timeout_s
        )


ProbedActor = ray.remote(  # type: ignore[call-overload]  # Ray's stub forgets concurrency_groups
    concurrency_groups={"control": 1, "mail": 1, "probe": 4}
)(ProbedRank)


class ProbeGroup(StageGroup):
    """Ranks whose lanes are measured."""

    actor_type = ProbedActor

    def facts(self, regions: Sequence[str]) -> list[HostFacts]:
        """Of each rank's host."""
        pairs = zip(self._actors, regions, strict=True)
        return self._collect([actor.facts.remote(region) for actor, region in pairs])

    def measure(self, lane: Lane, settings: ProbeSettings) -> list[Exchange]:
        """Measures one lane."""
        src, dst = lane
        exchanges: list[Exchange]
        _, exchanges = self._at_once(
            [src, dst],
            [
                self._actors[src].answer.remote(dst),
                self._actors[dst].measure.remote(src, settings),
            ],
        )
        return exchanges

    def seconds_of(self, loads: Iterable[tuple[Lane, Load]]) -> float:
        """How long some loads take, all at once."""
        start_s = time.perf_counter()
        ranks, calls = [], []
        for (src, dst), load in loads:
            ranks += [src, dst]
            calls += [
                self._actors[src].push.remote(dst, load),
                self._actors[dst].pull.remote(src, load),
            ]
        self._at_once(ranks, calls)
        return time.perf_counter() - start_s

    def _at_once(self, ranks: Sequence[int], calls: Sequence[Any]) -> list[Any]:
        return self._collect(calls, [self._names[rank] for rank in ranks])
