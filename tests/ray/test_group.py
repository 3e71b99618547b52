"""A group of actors: where they are, how they fail, and that nothing is left of them."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from crosspipe_ray.actors.cluster import check_labels, connected
from crosspipe_ray.actors.group import StageGroup, stage_group, started
from crosspipe_ray.actors.stage import Host
from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.errors import ClusterError, RunError
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.lowering import lower
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.program import lanes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_regions")]
REGIONS = ("us", "us", "eu", "eu")
TIMEOUT_S = 30.0


def small_plan() -> Plan:
    return plan(generate(Recipe(num_ranks=4, num_microbatches=4, output_bytes=1000)))


@contextmanager
def rehearsing_group() -> Iterator[StageGroup]:
    made = small_plan()
    programs = lower(made.problem, made.timeline)
    with stage_group(REGIONS, label="region", timeout_s=TIMEOUT_S) as group:
        group.connect(uniform(len(REGIONS), Carrier()), lanes(programs))
        group.rehearse(made.problem, programs)
        yield group


def test_ranks_are_in_their_regions() -> None:
    with stage_group(REGIONS, label="region", timeout_s=TIMEOUT_S) as group:
        assert [labels["region"] for labels in group.node_labels()] == list(REGIONS)


def test_a_rehearsal_runs_every_op_in_the_order_of_the_plan() -> None:
    made = small_plan()
    with rehearsing_group() as group:
        [reports] = group.steps([0])
    for rank, report in enumerate(reports):
        assert [span.op for span in report.record.spans] == list(made.schedule.ranks[rank])


class TwoClocks(StageGroup):
    """Takes the regions of one host for two hosts."""

    def hosts(self) -> list[Host]:
        return [Host(region, 1, clock_id=region) for region in REGIONS]


def test_clocks_of_other_hosts_are_looked_at_before_and_after_the_steps() -> None:
    made = small_plan()
    with started(TwoClocks, REGIONS, label="region", timeout_s=TIMEOUT_S) as group:
        group.connect(uniform(len(REGIONS), Carrier()), lanes(lower(made.problem, made.timeline)))
        before, after = group.look_at_clocks(), group.look_at_clocks()
    assert list(before) == list(after) == [2, 3]
    assert abs(after[2].offset_ns) <= after[2].error_ns < 0.1 * TIMEOUT_S * 1e9


def test_ranks_on_one_host_have_one_clock() -> None:
    with rehearsing_group() as group:
        assert group.look_at_clocks() == {}


def test_a_killed_rank_is_named_and_nothing_is_left() -> None:
    with rehearsing_group() as group:
        pids = group.process_ids()
        os.kill(pids[2], signal.SIGKILL)
        with pytest.raises(RunError, match=r"rank 2 \(eu\)"):
            list(group.steps(range(3)))
    wait_until_gone(pids)


def test_a_rank_that_raises_is_shown_with_its_traceback() -> None:
    made = small_plan()
    broken = made.problem.model_copy(update={"ranks": made.problem.ranks[:2]})
    programs = lower(made.problem, made.timeline)
    with stage_group(REGIONS, label="region", timeout_s=TIMEOUT_S) as group:
        pids = group.process_ids()
        with pytest.raises(RunError, match=r"(?s)rank \d \(\w\w\) failed:.*Traceback") as failure:
            group.rehearse(broken, programs)
        assert str(failure.value).count("Traceback (most recent call last)") == 1
    wait_until_gone(pids)


def test_a_region_without_a_node_is_refused_with_what_there_is() -> None:
    with pytest.raises(ClusterError, match=r"no Ray node has the label region=moon; .*us \(1\)"):
        check_labels(["us", "moon"], label="region")


def test_an_address_where_nothing_answers_is_refused() -> None:
    expected = "--address 127.0.0.1:1: nothing answers there"
    with pytest.raises(ClusterError, match=re.escape(expected)), connected("127.0.0.1:1"):
        pass


def wait_until_gone(pids: list[int]) -> None:
    """Actors are killed without waiting for them; they end within moments, or the test fails."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank's process is left"
        ray.wait([ray.put(None)], timeout=0.05)
