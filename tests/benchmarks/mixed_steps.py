"""A thousand training steps over mixed transports: none hangs, and every loss has the same bits.

    python -m tests.benchmarks.mixed_steps [--num-steps 1000]

Four ranks in processes of their own, once over gloo alone and once with streams and gloo in turn by
lane; a tiny model, so that messages and norms are most of what happens. Prints how long each took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.contract.oracle import Outcome, body, prepare_data, together
from tests.contract.rank_processes import Kind, RankProcesses

_NUM_RANKS = 4
_LONGEST_STEP_S = 0.5


def main() -> None:
    """Runs both and compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=1000)
    num_steps: int = parser.parse_args().num_steps
    with tempfile.TemporaryDirectory() as name:
        data = prepare_data(Path(name))
        ranks = RankProcesses(_NUM_RANKS, Path(name), checks_leaks=False)
        try:
            single, mixed = (_run(ranks, data, kind, num_steps) for kind in ("plain", "mixed"))
        finally:
            ranks.stop()
    mixed.assert_equals(single)
    print(f"{num_steps} steps: {len(mixed.losses)} times the same losses, and the same weights")


def _run(ranks: RankProcesses, data: Path, kind: Kind, num_steps: int) -> Outcome:
    started_s = time.perf_counter()
    steps = body(data, _NUM_RANKS, "zb-h1", num_steps=num_steps)
    parts = ranks.run(kind, _NUM_RANKS, steps, timeout_s=num_steps * _LONGEST_STEP_S)
    print(
        f"{kind}: {(time.perf_counter() - started_s) / num_steps * 1e3:.1f} ms a step", flush=True
    )
    return together(parts)


if __name__ == "__main__":
    main()
