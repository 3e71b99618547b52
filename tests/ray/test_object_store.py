"""The transport over Ray objects keeps the same contract as all others."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray

from crosspipe_ray.actors.transports import Mailbox, ObjectStoreTransport, Payload
from tests.contract.rank_processes import run_body
from tests.contract.transport_contract import CHECKS, TIMEOUT_S, Body, Check

pytestmark = pytest.mark.ray
NUMBERS = itertools.count()  # of bodies: mail of an earlier one may still be under way


class BodyRunner:
    """An actor that runs one body after another, each over a transport of its own."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._mailboxes = defaultdict[int, Mailbox](Mailbox)

    def run(self, number: int, peers: dict[int, Any], body: Body) -> Any:
        calls = {
            rank: partial(deliver, actor, number)
            for rank, actor in peers.items()
            if rank != self._rank
        }
        transport = ObjectStoreTransport(self._rank, mailbox=self._mailboxes[number], peers=calls)
        return run_body(transport, body)

    @ray.method(concurrency_group="mail")
    def deliver(self, number: int, src: int, sequence: int, tag: int, payload: Payload) -> None:
        self._mailboxes[number].deliver(src, sequence, tag, payload)


def deliver(actor: Any, number: int, src: int, sequence: int, tag: int, payload: Payload) -> None:
    actor.deliver.remote(number, src, sequence, tag, payload)


@pytest.fixture(scope="module")
def actors(two_regions: tuple[str, ...]) -> Iterator[dict[int, Any]]:
    remote: Any = ray.remote  # its stub forgets concurrency_groups
    actor_type = remote(num_cpus=0, concurrency_groups={"mail": 1})(BodyRunner)
    actors = {rank: actor_type.remote(rank) for rank in range(len(two_regions))}
    yield actors
    for actor in actors.values():
        ray.kill(actor)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_object_store_keeps_the_contract(check: Check, actors: dict[int, Any]) -> None:
    def run_ranks(num_ranks: int, body: Body) -> list[Any]:
        some, number = {rank: actors[rank] for rank in range(num_ranks)}, next(NUMBERS)
        runs = [actor.run.remote(number, some, body) for actor in some.values()]
        return ray.get(runs, timeout=3 * TIMEOUT_S)

    check(run_ranks)
