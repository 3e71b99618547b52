"""Real Ray nodes in emulated regions, with a rehearsal across the WAN."""

import json
import re
import sys
from pathlib import Path

import pytest

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import plan_json
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import read_problem
from crosspipe_ray.testing.wan import Wan, emulated_wan, mesh
from tests.wan.leftovers import assert_nothing_is_left

pytestmark = [pytest.mark.wan(latency_ms=20, bandwidth_mbit_s=1000), pytest.mark.ray]

TIMEOUT_S = 100.0
LIST_NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False)
print(json.dumps([[node["NodeName"], node["Labels"]["region"]] for node in ray.nodes()]))
"""


def test_a_plan_rehearsed_over_the_wan_takes_at_least_as_long_as_planned(
    ray_regions: Wan, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    recipe = Recipe(
        num_ranks=2,
        num_microbatches=4,
        forward_us=20_000,
        backward_input_us=20_000,
        backward_weight_us=20_000,
        output_bytes=100_000,
        latency_ratio=1.0,
    )
    made = plan(generate(recipe), method="greedy")
    file.write_text(json.dumps(plan_json(made)))
    assert ray_regions.ray_address is not None
    better = tmp_path / "problem.json"
    arguments = [
        *("--address", ray_regions.ray_address, "--no-emulate-links"),
        *("--steps", "3", "--corrected", str(better)),
    ]
    done = ray_regions.run(
        "us",
        [sys.executable, "-m", "crosspipe_ray", "rehearse", str(file), *arguments],
        timeout_s=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    measured_ms = [float(each) for each in re.findall(r"measured ([\d.]+) ms", done.stdout)]
    assert len(measured_ms) == 3
    assert min(measured_ms) >= 0.99 * made.timeline.makespan_ns * 1e-6
    links = read_problem(better).links
    assert all(19_900 < link.latency_us < 30_000 for link in links)
    assert ray_regions.report()[0].num_bytes > 3 * 4 * 100_000


def test_nodes_carry_their_region_and_nothing_of_them_is_left() -> None:
    with emulated_wan(mesh("us", "eu"), name="ray-test", with_ray=True) as wan:
        done = wan.run("eu", [sys.executable, "-c", LIST_NODES], timeout_s=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        assert sorted(json.loads(done.stdout)) == [["eu", "eu"], ["us", "us"]]
        pids = [*wan.process_ids("us"), *wan.process_ids("eu")]
        assert len(pids) > 5
    assert_nothing_is_left("ray-test", *pids)
