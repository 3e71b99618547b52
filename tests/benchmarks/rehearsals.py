"""Runs rehearsals by the public commands and reads what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Literal

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import write_plan
from crosspipe_ray.planners.portfolio import plan

_LINE = re.compile(r"planned ([\d.]+) ms, measured ([\d.]+) ms")
_TIMEOUT_S = 300
Runner = Literal["torchrun", "ray"]


def measured_ratio(recipe: Recipe, *, method: str, runner: Runner, num_steps: int = 5) -> float:
    """Measured over simulated makespan, the median of some steps after two to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "plan.json")
        write_plan(plan(generate(recipe), method=method), file)
        steps = str(num_steps + 2)
        command = {
            "torchrun": [
                *("-m", "torch.distributed.run", "--nproc-per-node", str(recipe.num_ranks)),
                *("-m", "crosspipe_ray.engine", str(file), "--steps", steps),
            ],
            "ray": ["-m", "crosspipe_ray", "rehearse", str(file), "--steps", steps],
        }[runner]
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    pairs = [(float(planned), float(measured)) for planned, measured in _LINE.findall(done.stdout)]
    if len(pairs) != num_steps + 2:
        raise SystemExit(f"the rehearsal failed:\n{done.stdout}{done.stderr}")
    return median(measured / planned for planned, measured in pairs[2:])
