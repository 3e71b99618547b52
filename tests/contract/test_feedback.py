"""Two runs in real time: the second is planned by what the first has measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from crosspipe_ray.correction import corrected_stages
from crosspipe_ray.engine.links import Emulation, emulated
from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.links.correction import corrected_links
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import StepReport, step_timeline
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Problem
from crosspipe_ray.timeline import Timeline
from tests.contract.rank_processes import RankProcesses

NUM_STEPS = 3
TIMEOUT_S = 40.0
TRUTH = generate(
    Recipe(
        num_ranks=2,
        num_microbatches=6,
        forward_us=10_000,
        backward_input_us=10_000,
        backward_weight_us=10_000,
        output_bytes=10_000,
        latency_ratio=2.0,
        bandwidth_ratio=0.5,
    )
)


@pytest.fixture(scope="module")
def rank_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    processes = RankProcesses(2, tmp_path_factory.mktemp("ranks"), checks_leaks=False)
    yield processes
    assert processes.stop() == "", "a rank writes to stderr"


def run_by(made: Plan, transport: Transport, *, clock_dir: Path) -> list[StepReport]:
    """Steps by a plan, with the stages and links of the truth."""
    shaped = emulated(transport, Emulation(TRUTH, clock_dir))
    program = lower(made.problem, made.timeline)[transport.rank]
    worker = RehearsalRank(TRUTH, program, shaped, timeout_s=TIMEOUT_S)
    return [worker.step(index) for index in range(NUM_STEPS)]


def wrong_profile() -> Problem:
    """Stages of half and of 80 % of their time, links of a quarter of their latency."""
    stages = tuple(
        stage.model_copy(
            update={
                "forward_us": stage.forward_us * scale,
                "backward_input_us": stage.backward_input_us * scale,
                "backward_weight_us": stage.backward_weight_us * scale,
            }
        )
        for stage, scale in zip(TRUTH.stages, (0.5, 0.8), strict=True)
    )
    links = tuple(
        link.model_copy(update={"latency_us": link.latency_us / 4}) for link in TRUTH.links
    )
    return TRUTH.model_copy(update={"stages": stages, "links": links})


def test_the_second_prediction_is_closer(rank_processes: RankProcesses, tmp_path: Path) -> None:
    def predict_and_run(problem: Problem) -> tuple[float, list[Timeline]]:
        made = plan(problem, method="zb-h1")
        body = partial(run_by, made, clock_dir=tmp_path)
        steps = zip(*rank_processes.run("plain", 2, body), strict=True)
        seen = [step_timeline(reports) for reports in steps]
        measured_ns = median(timeline.makespan_ns for timeline in seen)
        return abs(made.timeline.makespan_ns / measured_ns - 1), seen

    wrong = wrong_profile()
    first, seen = predict_and_run(wrong)
    second, _ = predict_and_run(corrected_links(corrected_stages(wrong, seen), seen))
    assert first > 0.2
    assert second < first / 3
