"""The driver of a training run: profile, plan, train, compare. It computes nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import fsum
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from crosspipe_ray.actors.cluster import cluster
from crosspipe_ray.actors.failures import explain
from crosspipe_ray.actors.group import StageGroup, clock_folder, stage_group
from crosspipe_ray.actors.planner import PlannerActor
from crosspipe_ray.actors.stage import Readiness
from crosspipe_ray.config import Config
from crosspipe_ray.engine.checks import (
    check_before_start,
    check_profile_fits,
    check_same_data,
    complete,
)
from crosspipe_ray.engine.links import emulation_of
from crosspipe_ray.engine.planning import (
    link_profile_of,
    one_f_one_b_makespan_ns,
)
from crosspipe_ray.engine.setup import assignments
from crosspipe_ray.links.choice import carriers_of
from crosspipe_ray.plan import Plan, read_plan
from crosspipe_ray.planners.pieces import shortest
from crosspipe_ray.planners.portfolio import Attempt
from crosspipe_ray.program import lanes
from crosspipe_ray.report.console import RunConsole
from crosspipe_ray.report.prediction import predictions
from crosspipe_ray.report.summary import RunSummary, headline, summary_markdown
from crosspipe_ray.run_profile import (
    NEXT_PROFILE_NAME,
    RunProfile,
    next_profile,
    read_run_profile,
    write_run_profile,
)
from crosspipe_ray.training.checkpoint import save_model
from crosspipe_ray.training.data import read_info
from crosspipe_ray.training.optimizer import learning_rate
from crosspipe_ray.training.run_folder import RunFolder
from crosspipe_ray.training.step_log import StepLog


def train(
    config: Config,
    console: RunConsole,
    *,
    address: str | None = None,
    plan_file: Path | None = None,
    profile_file: Path | None = None,
) -> Path:
    """Trains a model over the regions of a Ray cluster.

    Args:
        config: of the run.
        console: shows what goes on.
        address: of a Ray cluster; None starts one on this machine, a node per region.
        plan_file: a plan to use; None profiles and plans.
        profile_file: folder of an earlier run, or its profile: plan by it; None profiles.

    Returns:
        The folder with everything that the run produced.

    Raises:
        InputError: what was asked for cannot be; nothing has been started or written then.
        RunError: a rank failed; everything is stopped, what was saved stays.
    """
    config = complete(config)
    check_before_start(config, is_planned=plan_file is not None)
    given = read_plan(plan_file) if plan_file else None
    if given:
        config = config.in_microbatches(given.problem.num_microbatches)
        assignments(config, given)  # refuses a plan for another run before anything starts
    earlier = read_run_profile(profile_file) if profile_file else None
    if earlier:
        size = earlier.workload.microbatch_size
        config = config.in_microbatches(config.training.batch_size // size)
        check_profile_fits(config, earlier)
    settings, regions = config.cluster, config.cluster.rank_regions
    console.phase(f"starting {len(regions)} ranks in {', '.join(dict.fromkeys(regions))}")
    with (
        cluster(regions, label=settings.region_label, address=address),
        clock_folder() as clock_dir,
        stage_group(regions, label=settings.region_label, timeout_s=settings.timeout_s) as group,
    ):
        return _Run(config, console, group, clock_dir).go(given, earlier)


class _Run:
    """One run on ranks that stand ready, from the first profile to the last file."""

    def __init__(
        self, config: Config, console: RunConsole, group: StageGroup, clock_dir: Path
    ) -> None:
        self._config = config
        self._console = console
        self._group = group
        self._clock_dir = clock_dir
        self._attempts: list[Attempt] = []
        self._profile: RunProfile | None = None
        self._num_pieces = 1

    def go(self, given: Plan | None, earlier: RunProfile | None) -> Path:
        """Runs everything; returns the folder."""
        plan = given or self._plan(earlier)
        readiness = self._prepare(plan)
        folder = RunFolder(self._config, plan, self._profile)
        before = self._evaluate()
        log = self._steps(folder)
        after = self._evaluate()
        save_model(self._group.state_dict(), self._config.model, folder.path)
        notes = self._notes(readiness)
        self._group.close()
        held_out = None if before is None or after is None else (before, after)
        self._report(folder, plan, log, held_out, notes)
        return folder.path

    def _plan(self, earlier: RunProfile | None) -> Plan:
        """The shortest plan over the numbers of pieces; the run goes on with that number."""
        numbers, profiles = self._config.planner.pieces, dict[int, RunProfile]()
        planner: Any = PlannerActor.remote(link_profile_of(self._config))

        def make(num_pieces: int) -> Plan:
            config = self._config.in_pieces(num_pieces)
            profiles[num_pieces] = self._learn(planner, config, earlier)
            self._console.phase(f"planning ({config.planner.method})")
            plan: Plan
            plan, attempts = _answer(planner.plan.remote())
            self._attempts += [attempt.in_pieces(num_pieces) for attempt in attempts]
            if len(numbers) > 1:
                shown = f"{plan.timeline.makespan_ns / 1e6:.2f} ms by {plan.method}"
                self._console.phase(f"microbatches in {num_pieces} would take {shown}")
            return plan

        try:
            self._num_pieces, plan = shortest(numbers, make)
        finally:
            ray.kill(planner)
        self._config = self._config.in_pieces(self._num_pieces)
        self._profile = profiles[self._num_pieces]
        self._console.attempts(self._attempts)
        return plan

    def _learn(self, planner: Any, config: Config, earlier: RunProfile | None) -> RunProfile:
        """Has the planner know what the run's layers cost."""
        profile: RunProfile
        if earlier:
            profile = _answer(planner.start_from.remote(config, earlier))
        else:
            size = f"microbatches of {config.training.microbatch_size}"
            self._console.phase(f"profiling the layers, all ranks at once ({size})")
            profile = _answer(planner.learn.remote(config, self._group.profile(config)))
        return profile

    def _prepare(self, plan: Plan) -> list[Readiness]:
        """Connects the ranks and builds their stages."""
        settings = self._config.cluster
        carriers = carriers_of(plan.problem, settings.wish)
        names = ", ".join(sorted({str(carrier) for carrier in carriers.values()}))
        self._console.phase(f"connecting the ranks ({names})")
        assigned = assignments(self._config, plan)
        self._group.connect(
            carriers,
            lanes(assignment.program for assignment in assigned),
            emulation=emulation_of(self._config, plan.problem, self._clock_dir),
            streams_port=settings.streams_port,
        )
        readiness = self._group.train(assigned)
        check_same_data(rank.dataset_digest for rank in readiness)
        return readiness

    def _steps(self, folder: RunFolder) -> StepLog:
        training, log = self._config.training, StepLog(self._group.look_at_clocks())
        self._console.phase(f"training {training.num_steps} steps")
        with self._console.steps(training.num_steps):
            for index, reports in enumerate(self._group.steps(range(training.num_steps))):
                step = log.add(reports)
                folder.add_metrics(
                    {
                        "step": index,
                        "loss": step.loss,
                        "gradient_norm": step.gradient_norm,
                        "learning_rate": learning_rate(index, training),
                        "start_s": (step.start_ns - log.steps[0].start_ns) / 1e9,
                        "makespan_s": step.timeline.makespan_ns / 1e9,
                        "norm_exchange_s": step.norm_exchange_s,
                        "optimizer_s": step.optimizer_s,
                    }
                )
                self._console.step(index, training.num_steps, step.loss)
        log.correct(self._group.look_at_clocks())
        return log

    def _evaluate(self) -> float | None:
        """Mean held-out loss."""
        if not self._config.training.num_evaluation_microbatches:
            return None
        losses = self._group.evaluate()
        return fsum(losses) / len(losses)

    def _notes(self, readiness: Sequence[Readiness]) -> list[str]:
        """What the reader of the summary should know besides the figures."""
        hosts = self._group.hosts()
        threads = Counter(host.name for host in hosts)
        cores = {host.name: host.num_cores for host in hosts}
        fullest = max(threads, key=lambda name: threads[name] / cores[name])
        busy = threads[fullest] * self._config.training.num_threads
        notes = [
            f"The fullest host has {busy} busy threads on {cores[fullest]} cores, "
            f"{busy / cores[fullest]:.1f} per core"
            + (": measured times include waiting for a core." if busy > cores[fullest] else ".")
        ]
        if self._num_pieces > 1:
            notes.append(f"Every microbatch went in {self._num_pieces} pieces.")
        unsplit = sorted(stage for rank in readiness for stage in rank.unsplit_stages)
        notes += [
            f"Stage {stage} has no linear layer: its whole backward pass runs in I."
            for stage in unsplit
        ]
        if self._config.cluster.emulate_links:
            notes.append("The links between regions are emulated inside the transport.")
        return notes

    def _report(
        self,
        folder: RunFolder,
        plan: Plan,
        log: StepLog,
        held_out: tuple[float, float] | None,
        notes: Sequence[str],
    ) -> None:
        config, times = self._config, log.times()
        tokens = config.training.batch_size * config.data.sequence_length
        summary = RunSummary(
            losses=log.losses,
            held_out=held_out,
            unigram_entropy=read_info(config.data.path).unigram_entropy_nats,
            plan=plan,
            attempts=self._attempts,
            times=times,
            one_f_one_b_ns=one_f_one_b_makespan_ns(
                self._profile.problem if self._profile else plan.problem
            ),
            tokens_per_s=tokens / times.step_s,
            predictions=predictions(
                plan.timeline, log.timelines(), clusters=config.cluster.rank_regions
            ),
            notes=notes,
            clocks=log.clocks,
            profile=self._profile,
        )
        regions = ", ".join(region.name for region in config.cluster.regions)
        title = f"{len(config.cluster.rank_regions)} ranks in {regions}: {plan.method}"
        folder.draw(plan.timeline, log.typical(), title=title)
        folder.write("summary.md", summary_markdown(summary, title=title))
        if self._profile:
            better = next_profile(
                self._profile,
                plan.problem,
                log.timelines(),
                with_links=not config.cluster.emulate_links,
            )
            write_run_profile(better, folder.path / NEXT_PROFILE_NAME)
        self._console.figures([*headline(summary), ("written to", str(folder.path))])
        for note in notes:
            self._console.phase(note)


def _answer(reference: Any) -> Any:
    """What the planner says, or its error, for the user."""
    try:
        return ray.get(reference)
    except RayError as error:
        raise explain({"the planner": error}) from None
