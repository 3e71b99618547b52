"""What planning for the p95 of jittery links gains: python tests/benchmarks/jitter.py.

8 ranks x 16 microbatches, F/I/W = 1/1.28/0.48, latencies log-normal with median T_F and sigma 0.6,
T_bw = T_F / 4. The usual plan and the robust one meet the same 1000 steps.
"""

from __future__ import annotations

import numpy as np

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.planners.portfolio import Budget, plan
from crosspipe_ray.planners.robust import draw, robust_plan
from crosspipe_ray.planners.sampling import makespans_ns
from crosspipe_ray.problem import Problem

BUDGET = Budget(time_limit_s=4.0)


def jittery(clusters: tuple[str, ...], memory: int) -> Problem:
    """200 measured latencies per link."""
    recipe = Recipe(
        num_ranks=8,
        num_microbatches=16,
        clusters=clusters,
        latency_ratio=1.0,
        bandwidth_ratio=0.25,
        memory=memory,
        backward_input_us=1280.0,
        backward_weight_us=480.0,
    )
    data = generate(recipe).model_dump()
    rng = np.random.default_rng(1)
    for link in data["links"]:
        link["latency_samples_us"] = (1000 * rng.lognormal(0, 0.6, 200)).tolist()
    return Problem.model_validate(data)


def main() -> None:
    """Prints a line per problem."""
    for clusters in (("a", "b"), ("a", "b", "c", "d")):
        for memory in (1, 2):
            problem = jittery(clusters, memory)
            latencies = draw(problem, num_samples=1000, seed=BUDGET.seed)
            usual_ms = makespans_ns(plan(problem, budget=BUDGET), latencies) / 1e6
            usual_p50, usual_p95 = np.quantile(usual_ms, (0.5, 0.95), method="inverted_cdf")
            robust = robust_plan(problem, quantile=0.95, budget=BUDGET)
            assert robust.p50_ns is not None
            assert robust.p95_ns is not None
            p50, p95 = robust.p50_ns / 1e6, robust.p95_ns / 1e6
            print(
                f"{len(clusters)} regions, memory {memory}x: p50 {usual_p50:.2f} -> {p50:.2f} ms, "
                f"p95 {usual_p95:.2f} -> {p95:.2f} ms ({p95 / usual_p95 - 1:+.1%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
