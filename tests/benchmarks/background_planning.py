"""What a planner that works beside a rehearsal costs it.

    python -m tests.benchmarks.background_planning [NUM_PAIRS]

4 ranks x 16 microbatches by zb-h1 on Ray actors, 20 ms blocks that sleep; the planner actor (one
worker, nicer than the ranks) sits idle or plans 8 ranks x 64 microbatches. Pairs of a few steps
with and a few without, in one run and in turn; the median of busy / idle makespan. Wanted: at most
1.02.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import ray

from crosspipe_ray.actors.cluster import cluster
from crosspipe_ray.actors.group import StageGroup, stage_group
from crosspipe_ray.actors.planner import PlannerActor
from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.config import Config
from crosspipe_ray.engine.measure import LayerCosts
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import step_timeline
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.program import lanes

_NUM_STEPS = 3
_NUM_WARMUP_STEPS = 2
_TIMEOUT_S = 120.0
_PLANNING_S = 15.0  # longer than the steps beside it
_BLOCK_US = 20_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RECIPE = Recipe(
    num_ranks=4,
    num_microbatches=16,
    forward_us=_BLOCK_US,
    backward_input_us=_BLOCK_US,
    backward_weight_us=_BLOCK_US,
    output_bytes=2**16,
)


def main() -> None:
    """Prints a line for each pair, then the median."""
    num_pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    made = plan(generate(_RECIPE), method="zb-h1")
    regions = [rank.cluster for rank in made.problem.ranks]
    with (
        cluster(regions, label="region", address=None),
        stage_group(regions, label="region", timeout_s=_TIMEOUT_S) as group,
    ):
        programs = lower(made.problem, made.timeline)
        group.connect(uniform(len(regions), Carrier()), lanes(programs))
        group.rehearse(made.problem, programs)
        planner = _planner()
        _makespan_ms(group, num_steps=_NUM_WARMUP_STEPS)
        ratios = [_pair(group, planner, busy_first=bool(index % 2)) for index in range(num_pairs)]
        group.close()
    print(f"median of {num_pairs}: {median(ratios):.4f} (planned {_planned_ms(made):.1f} ms)")


def _planner() -> Any:
    """An actor with a problem that keeps it busy for as long as it may."""
    block = LayerCosts(9_000, 12_000, 4_000, 4000, 500, 2**20, 0, 0)
    head = LayerCosts(14_000, 20_000, 11_000, 3000, 500, 0, 0, 0)
    embedding = LayerCosts(1_000, 1_000, 0, 1000, 0, 2**20, 0, 0)
    planner: Any = PlannerActor.remote()
    profiles = [[embedding, block, head]] * 8
    ray.get(planner.learn.remote(_planner_config(), profiles), timeout=_TIMEOUT_S)
    return planner


def _planner_config() -> Config:
    regions = [
        {"name": name, "num_ranks": 4, "memory_limit_bytes": 160_000} for name in ("us", "eu")
    ]
    link = {"src": "us", "dst": "eu", "latency_us": 30_000, "bandwidth_bytes_per_s": 50e6}
    raw = {
        "model": {
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_layers": 29,
            "num_heads": 4,
            "num_kv_heads": 4,
        },
        "data": {"path": Path("none"), "sequence_length": 16},
        "training": {"num_steps": 1, "batch_size": 64, "num_microbatches": 64},
        "cluster": {"regions": regions, "links": [link]},
        "planner": {"method": "auto", "time_limit_s": _PLANNING_S},
    }
    return Config.model_validate(raw)


def _pair(group: StageGroup, planner: Any, *, busy_first: bool) -> float:
    if busy_first:
        busy_ms, share = _beside_planning(group, planner)
        idle_ms = _makespan_ms(group, num_steps=_NUM_STEPS)
    else:
        idle_ms = _makespan_ms(group, num_steps=_NUM_STEPS)
        busy_ms, share = _beside_planning(group, planner)
    print(
        f"idle {idle_ms:.1f} ms, planning {busy_ms:.1f} ms, ratio {busy_ms / idle_ms:.4f}; "
        f"the planner had {share:.2f} of a core",
        flush=True,
    )
    return busy_ms / idle_ms


def _beside_planning(group: StageGroup, planner: Any) -> tuple[float, float]:
    """The makespan while the planner works, and how much of a core it got."""
    pid = ray.get(planner.__ray_call__.remote(lambda _: os.getpid()), timeout=_TIMEOUT_S)
    planning = planner.plan.remote()
    cpu_s, start_s = _cpu_s(pid), time.monotonic()
    makespan_ms = _makespan_ms(group, num_steps=_NUM_STEPS)
    share = (_cpu_s(pid) - cpu_s) / (time.monotonic() - start_s)
    done, _ = ray.wait([planning], timeout=0)
    if done:
        raise SystemExit("the planner was done before the steps were: give it a larger problem")
    ray.get(planning, timeout=_TIMEOUT_S)
    return makespan_ms, share


def _cpu_s(pid: int) -> float:
    """Of a process and all its threads, from the kernel's fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _makespan_ms(group: StageGroup, *, num_steps: int) -> float:
    steps = group.steps(range(num_steps))
    return median(step_timeline(reports).makespan_ns for reports in steps) / 1e6


def _planned_ms(made: Plan) -> float:
    return made.timeline.makespan_ns / 1e6


if __name__ == "__main__":
    main()
