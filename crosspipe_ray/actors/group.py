"""All stage actors of a run as one thing: placed, wired, stepped, and stopped together."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from crosspipe_ray.actors.failures import explain
from crosspipe_ray.actors.placement import reserve
from crosspipe_ray.actors.stage import Host, Readiness, StageActor
from crosspipe_ray.carriers import Carriers
from crosspipe_ray.clock_estimate import HostClock, RoundTrip, clocks_of_ranks
from crosspipe_ray.config import Config
from crosspipe_ray.engine.links import Emulation
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.training_rank import Assignment
from crosspipe_ray.engine.transports.streams import RunSecrets
from crosspipe_ray.engine.wiring import Wiring
from crosspipe_ray.errors import ConfigError, RunError
from crosspipe_ray.measured import StepReport
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Lane, Program

Actor = Any  # a handle of StageActor: Ray's stubs lose the types of methods in concurrency groups
Result = TypeVar("Result")
Group = TypeVar("Group", bound="StageGroup")

_HEARTBEAT_EVERY_S = 10.0
_STOP_TIMEOUT_S = 5.0


class StageGroup:
    """The ranks of a run. Made by `stage_group`, which also stops it.

    Args:
        actors: by rank.
        regions: of each rank, for messages.
        timeout_s: a rank that neither finishes nor answers for this long has failed.

    Attributes:
        actor_type: what one rank is.
    """

    actor_type: Any = StageActor

    def __init__(
        self, actors: Sequence[Actor], regions: Sequence[str], *, timeout_s: float
    ) -> None:
        self._actors = actors
        self._names = [f"rank {rank} ({region})" for rank, region in enumerate(regions)]
        self._timeout_s = timeout_s
        self._round_trips: dict[int, list[RoundTrip]] = {}

    def profile(self, config: Config) -> list[list[LayerCosts]]:
        """Layer costs by rank, measured while all ranks are busy."""
        self._call(lambda actor: actor.heartbeat.remote())  # so that all of them start together
        return self._call(lambda actor: actor.profile.remote(config))

    def connect(
        self,
        carriers: Carriers,
        pairs: Sequence[Lane],
        *,
        emulation: Emulation | None = None,
        streams_port: int | None = None,
    ) -> None:
        """Wires the ranks; credentials for streams are made here, for these ranks alone.

        Args:
            carriers: of every directed pair of ranks.
            pairs: those that exchange large messages.
            emulation: links to inject.
            streams_port: of rank 0; the next ones follow.

        Raises:
            ConfigError: links are to be emulated, but the ranks are on several hosts; or there can
                be no credentials.
        """
        names = sorted({host.name for host in self.hosts()})
        if emulation and len(names) > 1:
            raise ConfigError(
                f"cluster.emulate_links: the ranks are on {', '.join(names)}; links can only be "
                "emulated between ranks of one host"
            )
        wiring = Wiring(
            num_ranks=len(self._actors),
            carriers=carriers,
            lanes=pairs,
            timeout_s=self._timeout_s,
            streams_port=streams_port,
            emulation=emulation,
        )
        if "streams" in wiring.transports:
            wiring = replace(wiring, secrets=RunSecrets.new())
        [store] = self._collect([self._actors[0].open_store.remote(self._timeout_s)])
        peers = dict(enumerate(self._actors))
        self._call(lambda actor: actor.connect.remote(wiring, store, peers))

    def train(self, assignments: Sequence[Assignment]) -> list[Readiness]:
        """Makes every rank ready to train."""
        pairs = zip(self._actors, assignments, strict=True)
        return self._collect([actor.train.remote(assignment) for actor, assignment in pairs])

    def rehearse(self, problem: Problem, programs: Sequence[Program]) -> None:
        """Makes every rank ready to rehearse."""
        pairs = zip(self._actors, programs, strict=True)
        self._collect(
            [actor.rehearse.remote(problem, program, self._timeout_s) for actor, program in pairs]
        )

    def steps(self, indices: Sequence[int]) -> Iterator[list[StepReport]]:
        """Runs steps; one call stays queued ahead, so that no step waits for the driver."""
        queued: deque[list[ObjectRef[StepReport]]] = deque()
        for index in indices:
            is_last = index == indices[-1]
            queued.append([actor.step.remote(index, is_last) for actor in self._actors])
            if len(queued) > 1:
                yield self._collect(queued.popleft())
        while queued:
            yield self._collect(queued.popleft())

    def evaluate(self) -> list[float]:
        """Held-out loss of each microbatch."""
        return [
            loss for losses in self._call(lambda actor: actor.evaluate.remote()) for loss in losses
        ]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights of the whole model, in the order of ranks."""
        parts = self._call(lambda actor: actor.state_dict.remote())
        return {name: tensor for part in parts for name, tensor in part.items()}

    def node_labels(self) -> list[dict[str, str]]:
        """Labels of the node of each rank."""
        return self._call(lambda actor: actor.node_labels.remote())

    def hosts(self) -> list[Host]:
        """The machine of each rank."""
        return self._call(lambda actor: actor.host.remote())

    def look_at_clocks(self) -> dict[int, HostClock]:
        """The clocks of the ranks that do not share rank 0's, by what all looks so far have shown.

        Once before the steps and once after them; ranks must be connected, and between two steps.
        """
        clock_ids = [host.clock_id for host in self.hosts()]
        if len(set(clock_ids)) > 1:
            found, *_ = self._call(
                lambda actor: actor.exchange_clocks.remote(clock_ids, self._timeout_s)
            )
            for rank, round_trips in found.items():
                self._round_trips.setdefault(rank, []).extend(round_trips)
        return clocks_of_ranks(clock_ids, self._round_trips)

    def process_ids(self) -> list[int]:
        """Of each rank, on its host."""
        return self._call(lambda actor: actor.heartbeat.remote())

    def close(self) -> None:
        """Lets all ranks leave their groups in order, after a run without failure."""
        self._call(lambda actor: actor.close.remote())

    def stop(self, reason: str) -> None:
        """Ends all actors, whatever they are doing."""
        with suppress(RayError):  # some may be dead already; all of them are below
            aborts = [actor.abort.remote(reason) for actor in self._actors]
            ray.wait(aborts, num_returns=len(aborts), timeout=_STOP_TIMEOUT_S)
        for actor in self._actors:
            ray.kill(actor)

    def _call(self, start: Callable[[Actor], ObjectRef[Result]]) -> list[Result]:
        """Calls every rank and waits for all."""
        return self._collect([start(actor) for actor in self._actors])

    def _collect(
        self, references: Sequence[ObjectRef[Result]], names: Sequence[str] = ()
    ) -> list[Result]:
        """Waits for all results; the first failure stops all ranks and is explained.

        Args:
            references: one per rank, or as many as there are names.
            names: of the ranks that were called; default: all.

        Raises:
            RunError: names the rank, with its traceback.
        """
        waiting = list(references)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_HEARTBEAT_EVERY_S)
            try:
                ray.get(done)
            except RayError:
                raise self._failure(references, names or self._names) from None
            if not done:
                self._check_heartbeats()
        return list(ray.get(list(references)))

    def _failure(self, references: Sequence[ObjectRef[Result]], names: Sequence[str]) -> Exception:
        """Stops waiting ranks, so that each one's own error is known, and finds the first cause."""
        for actor in self._actors:
            actor.abort.remote("another rank failed")
        ray.wait(list(references), num_returns=len(references), timeout=_STOP_TIMEOUT_S)
        errors: dict[str, Exception] = {}
        for name, reference in zip(names, references, strict=False):
            error = _error_of(reference)
            if error is not None:
                errors[name] = error
        return explain(errors)

    def _check_heartbeats(self) -> None:
        """Asks ranks that take long whether they are alive: a stopped process says nothing."""
        beats = [actor.heartbeat.remote() for actor in self._actors]
        answered, _ = ray.wait(beats, num_returns=len(beats), timeout=self._timeout_s)
        asked = zip(self._names, beats, strict=True)
        silent = [name for name, beat in asked if beat not in answered]
        if silent:
            raise RunError(f"{', '.join(silent)}: no answer for {self._timeout_s:g} s")


def stage_group(
    regions: Sequence[str], *, label: str, timeout_s: float
) -> AbstractContextManager[StageGroup]:
    """Starts one actor per rank in its region; nothing of them is left afterwards."""
    return started(StageGroup, regions, label=label, timeout_s=timeout_s)


@contextmanager
def started(
    group_type: type[Group], regions: Sequence[str], *, label: str, timeout_s: float
) -> Iterator[Group]:
    """As `stage_group`, for groups of another type."""
    reservation = reserve(regions, label=label, timeout_s=timeout_s)
    group = None
    try:
        actor_type = group_type.actor_type
        actors = [_start(actor_type, rank, reservation) for rank in range(len(regions))]
        group = group_type(actors, regions, timeout_s=timeout_s)
        yield group
    finally:
        if group is not None:
            group.stop("the run is over")
        remove_placement_group(reservation)


@contextmanager
def clock_folder() -> Iterator[Path]:
    """A folder for the clocks of emulated channels."""
    folder = Path(tempfile.mkdtemp(prefix="crosspipe-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _error_of(reference: ObjectRef[Result]) -> Exception | None:
    """What a call has raised, if it has."""
    try:
        ray.get(reference, timeout=0)
    except GetTimeoutError:
        return None
    except RayError as error:
        return error
    return None


def _start(actor_type: Any, rank: int, reservation: PlacementGroup) -> Actor:
    bundle = reservation.bundle_specs[rank]
    strategy = PlacementGroupSchedulingStrategy(reservation, placement_group_bundle_index=rank)
    return actor_type.options(
        num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy
    ).remote(rank)
