"""The actor that is one rank: it holds the rank's stages and runs its program, step by step."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from crosspipe_ray import host
from crosspipe_ray.actors.transports import Mailbox, ObjectStoreTransport, Payload
from crosspipe_ray.clock_estimate import RoundTrip
from crosspipe_ray.config import Config
from crosspipe_ray.engine.clock_exchange import exchange_clocks
from crosspipe_ray.engine.device import rank_device
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.setup import profile_run
from crosspipe_ray.engine.training_rank import Assignment, TrainingRank
from crosspipe_ray.engine.transports import Transport, host_store, join_store
from crosspipe_ray.engine.wiring import Wiring, connected
from crosspipe_ray.errors import RunError
from crosspipe_ray.measured import StepReport
from crosspipe_ray.problem import Problem
from crosspipe_ray.program import Program


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a rank found out while it built its stages.

    Attributes:
        dataset_digest: of the tokens that it reads; None: it reads none.
        unsplit_stages: stages without a linear layer: I does the whole backward pass.
    """

    dataset_digest: str | None
    unsplit_stages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """Where a rank runs, the cores that it may use there, and which clock it reads."""

    name: str
    num_cores: int
    clock_id: str


class Stage:
    """One rank of a run. Control and mail have threads of their own beside the steps'."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._device = rank_device()
        self._mailbox = Mailbox()
        self._transport: Transport | None = None
        self._store: object = None  # keeps the meeting point open while this actor lives
        self._worker: TrainingRank | RehearsalRank | None = None

    @ray.method
    def profile(self, config: Config) -> list[LayerCosts]:
        """Measures the model's layers on this rank."""
        return profile_run(config, device=self._device)

    @ray.method
    def open_store(self, timeout_s: float) -> tuple[str, int]:
        """Hosts the meeting point of collective groups; returns its address."""
        store = host_store(_own_address(), timeout_s=timeout_s)
        self._store = store
        return store.host, store.port

    @ray.method
    def connect(
        self, wiring: Wiring, store: tuple[str, int], peers: Mapping[int, ActorHandle[Any]]
    ) -> None:
        """Connects to the other ranks and warms every lane.

        Args:
            wiring: of the run.
            store: host and port of what `open_store` has opened.
            peers: actors by rank, for object transfer.
        """
        if wiring.num_ranks == 1:
            return
        host, port = store
        self._transport = connected(
            wiring,
            self._rank,
            store=join_store(host, port, timeout_s=wiring.timeout_s),
            device=self._device,
            object_store=lambda: self._by_objects(peers),
        )

    @ray.method
    def train(self, assignment: Assignment) -> Readiness:
        """Makes ready to train."""
        worker = TrainingRank(assignment, self._transport, device=self._device)
        self._worker = worker
        return Readiness(worker.dataset_digest, worker.unsplit_stages)

    @ray.method
    def rehearse(self, problem: Problem, program: Program, timeout_s: float) -> None:
        """Makes ready to rehearse."""
        self._worker = RehearsalRank(problem, program, self._transport, timeout_s=timeout_s)

    @ray.method
    def step(self, index: int, is_last: bool) -> StepReport:
        """Runs one step; the call carries its number, and whether another one follows."""
        if self._worker is None:
            raise RunError(f"rank {self._rank} has nothing to run yet")
        return self._worker.step(index, is_last=is_last)

    @ray.method
    def evaluate(self) -> tuple[float, ...]:
        """Held-out losses, on the rank with the last stage."""
        return self._trainer().evaluate()

    @ray.method
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The rank's weights."""
        return self._trainer().state_dict()

    @ray.method
    def node_labels(self) -> dict[str, Any]:
        """Labels of the node that this rank runs on."""
        return dict(ray.get_runtime_context().get_node_labels())

    @ray.method
    def host(self) -> Host:
        """The machine that this rank runs on."""
        return Host(socket.gethostname(), len(os.sched_getaffinity(0)), host.clock_id())

    @ray.method
    def exchange_clocks(
        self, clock_ids: Sequence[str], timeout_s: float
    ) -> dict[int, list[RoundTrip]]:
        """Looks at the clocks of the other hosts, if this is rank 0; else answers."""
        assert self._transport is not None, "ranks with several clocks are several"
        return exchange_clocks(self._transport, clock_ids, timeout_s=timeout_s)

    @ray.method
    def close(self) -> None:
        """Leaves the groups in order; the others do so at the same time."""
        if self._transport is not None:
            self._transport.close()

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> int:
        """Answers, whatever the rank is computing; returns its process id."""
        return os.getpid()

    @ray.method(concurrency_group="control")
    def abort(self, reason: str) -> None:
        """Ends every wait of the running step."""
        if self._transport is not None:
            self._transport.abort(reason)

    @ray.method(concurrency_group="mail")
    def deliver(self, src: int, sequence: int, tag: int, payload: Payload) -> None:
        """Takes a message that came as a Ray object."""
        self._mailbox.deliver(src, sequence, tag, payload)

    def _by_objects(self, peers: Mapping[int, ActorHandle[Any]]) -> Transport:
        deliveries = {
            rank: partial(_deliver, actor) for rank, actor in peers.items() if rank != self._rank
        }
        return ObjectStoreTransport(self._rank, mailbox=self._mailbox, peers=deliveries)

    def _trainer(self) -> TrainingRank:
        if not isinstance(self._worker, TrainingRank):
            raise RunError(f"rank {self._rank} is not training")
        return self._worker


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own
    return address


def _deliver(actor: ActorHandle[Any], src: int, sequence: int, tag: int, payload: Payload) -> None:
    actor.deliver.remote(src, sequence, tag, payload)


StageActor = ray.remote(  # type: ignore[call-overload]  # Ray's stub forgets concurrency_groups
    concurrency_groups={"control": 1, "mail": 1}
)(Stage)
