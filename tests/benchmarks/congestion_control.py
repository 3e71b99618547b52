"""The same plan over one long link, step after step, by each congestion control of TCP.

    python -m tests.benchmarks.congestion_control [NUM_STEPS]

4 ranks in 2 emulated regions (network namespaces, real TCP), 80 ms and 100 Mbit/s apart: 8
microbatches in 2 pieces, F = I = W = 40 ms sleeps. Milliseconds; the mean and the worst leave out
the first three steps, in which connections gather speed. About a minute each; needs root and
/dev/net/tun.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import fmean, median

from crosspipe_ray.generator import generate
from crosspipe_ray.plan import Plan, write_plan
from crosspipe_ray.planners.pieces import in_pieces
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.testing.wan import WanSpec, emulated_wan
from tests.benchmarks.wan_ranks import recipe_of, rehearsed_us, wan_of

_NUM_STEPS, _NUM_WARMUP_STEPS = 30, 3


def main() -> None:
    """Prints the table."""
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else _NUM_STEPS
    recipe = recipe_of(2.0, 2.0, num_ranks=4, num_microbatches=8)
    made, spec = plan(in_pieces(generate(recipe), 2)), wan_of(recipe)
    print(f"planned: {made.timeline.makespan_ns / 1e6:.0f} ms")
    print("| congestion control | first step | median | mean | worst |\n|---|---|---|---|---|")
    for name in ("bbr", "cubic"):
        steps = _steps_ms(made, _with(spec, name), num_steps)
        steady = steps[_NUM_WARMUP_STEPS:]
        figures = (steps[0], median(steady), fmean(steady), max(steady))
        print(f"| {name} | {' | '.join(f'{ms:.0f}' for ms in figures)} |", flush=True)


def _with(spec: WanSpec, congestion_control: str) -> WanSpec:
    links = [
        link.model_copy(update={"congestion_control": congestion_control}) for link in spec.links
    ]
    return spec.model_copy(update={"links": tuple(links)})


def _steps_ms(made: Plan, spec: WanSpec, num_steps: int) -> list[float]:
    with emulated_wan(spec) as wan, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        write_plan(made, file)
        return [us / 1000 for us in rehearsed_us(wan, file, num_steps=num_steps)]


if __name__ == "__main__":
    main()
