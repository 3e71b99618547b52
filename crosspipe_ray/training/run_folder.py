"""The folder that a run leaves: configuration, plan, metrics, pictures, weights, summary."""

from __future__ import annotations

import json
import time
from pathlib import Path

from crosspipe_ray.config import Config, dump_config
from crosspipe_ray.errors import InputError
from crosspipe_ray.files import write_atomically
from crosspipe_ray.plan import Plan, write_plan
from crosspipe_ray.report.svg import timeline_svg
from crosspipe_ray.report.trace import trace_events
from crosspipe_ray.run_profile import PROFILE_NAME, RunProfile, write_run_profile
from crosspipe_ray.timeline import Timeline


class RunFolder:
    """Writes what a run produces, as it comes: what is saved stays, also when the run fails later.

    Args:
        config: of the run; the folder is made in its ``output``, named by the time.
        plan: of the run.
        profile: that it was made from; None: it was given.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, config: Config, plan: Plan, profile: RunProfile | None) -> None:
        self.path = _new_folder(config.output)
        self._clusters = list(config.cluster.rank_regions)
        write_atomically(self.path / "config.yaml", dump_config(config))
        write_plan(plan, self.path / "plan.json")
        if profile:
            write_run_profile(profile, self.path / PROFILE_NAME)

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Appends one step to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def draw(self, planned: Timeline, measured: Timeline, *, title: str) -> None:
        """Writes ``timeline.svg`` and ``trace.json``, planned over measured."""
        panels = [("planned", planned), ("measured", measured)]
        picture = timeline_svg(panels, clusters=self._clusters, title=title)
        write_atomically(self.path / "timeline.svg", picture)
        events = trace_events(panels, clusters=self._clusters)
        write_atomically(self.path / "trace.json", json.dumps(events, separators=(",", ":")))

    def write(self, name: str, text: str) -> None:
        """Writes a file of text."""
        write_atomically(self.path / name, text)


def _new_folder(parent: Path) -> Path:
    name = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            (parent / f"{name}{suffix}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"output: cannot make a folder in {parent}: {error.strerror}"
            ) from None
        return parent / f"{name}{suffix}"
    raise InputError(f"output: {parent} has too many runs of the second {name}")
