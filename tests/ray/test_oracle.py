"""The oracle on real actors: the same bits over both of their transports."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from crosspipe_ray.actors.group import StageGroup, stage_group
from crosspipe_ray.actors.stage import TransportKind
from crosspipe_ray.engine.training_rank import Assignment
from tests.contract.oracle import (
    METHODS,
    NUM_RANKS,
    NUM_STEPS,
    Outcome,
    make_assignments,
)

pytestmark = pytest.mark.ray
TIMEOUT_S = 60.0


@contextmanager
def wired_group(assigned: Sequence[Assignment], transport: TransportKind) -> Iterator[StageGroup]:
    regions = [rank.cluster for rank in assigned[0].problem.ranks]
    with stage_group(regions, label="region", timeout_s=TIMEOUT_S) as group:
        group.connect(transport, [assignment.program for assignment in assigned], None)
        yield group


def outcome(group: StageGroup, assigned: Sequence[Assignment]) -> Outcome:
    group.train(assigned)
    reports = list(group.steps(range(NUM_STEPS)))
    losses = [tuple(loss for report in step for loss in report.losses) for step in reports]
    return Outcome(losses, tuple(group.evaluate()), group.state_dict())


@pytest.mark.usefixtures("two_regions")
@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_object_store_equals_plain_pytorch(data: Path, reference: Outcome, num_ranks: int) -> None:
    """One group runs all methods: messages between actors need no lanes."""
    by_method = {method: make_assignments(data, num_ranks, method) for method in METHODS}
    with wired_group(by_method["1f1b"], "object_store") as group:
        for assigned in by_method.values():
            outcome(group, assigned).assert_equals(reference)


@pytest.mark.usefixtures("two_regions")
def test_collective_between_actors_equals_plain_pytorch(data: Path, reference: Outcome) -> None:
    assigned = make_assignments(data, 4, "greedy")
    with wired_group(assigned, "collective") as group:
        outcome(group, assigned).assert_equals(reference)
