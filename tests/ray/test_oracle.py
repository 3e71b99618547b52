"""The oracle on real actors: the same bits over all of their transports, alone and mixed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from crosspipe_ray.actors.group import StageGroup, stage_group
from crosspipe_ray.carriers import Carrier, Carriers, uniform
from crosspipe_ray.engine.training_rank import Assignment
from crosspipe_ray.program import lanes
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
def wired_group(assigned: Sequence[Assignment], carriers: Carriers) -> Iterator[StageGroup]:
    regions = [rank.cluster for rank in assigned[0].problem.ranks]
    with stage_group(regions, label="region", timeout_s=TIMEOUT_S) as group:
        group.connect(carriers, lanes(assignment.program for assignment in assigned))
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
    by_objects = uniform(num_ranks, Carrier("object_store"))
    with wired_group(by_method["1f1b"], by_objects) as group:
        for assigned in by_method.values():
            outcome(group, assigned).assert_equals(reference)


@pytest.mark.usefixtures("two_regions")
def test_collective_between_actors_equals_plain_pytorch(data: Path, reference: Outcome) -> None:
    assigned = make_assignments(data, 4, "greedy")
    with wired_group(assigned, uniform(4, Carrier())) as group:
        outcome(group, assigned).assert_equals(reference)


@pytest.mark.usefixtures("two_regions")
def test_all_transports_mixed_equal_plain_pytorch(data: Path, reference: Outcome) -> None:
    """Each direction of a link may have its own; each part of the cluster has some of each."""
    assigned = make_assignments(data, 4, "greedy")
    mixed = {
        **uniform(4, Carrier("streams", 2)),
        (0, 1): Carrier(),
        (2, 3): Carrier(),
        (3, 2): Carrier(),
        (1, 0): Carrier("object_store"),
        (2, 1): Carrier("object_store"),
    }
    with wired_group(assigned, mixed) as group:
        outcome(group, assigned).assert_equals(reference)
