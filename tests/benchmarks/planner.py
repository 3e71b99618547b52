"""How good plans are, and how fast: python -m tests.benchmarks.planner [ROW ...] [--instances N].

Each row plans seeded instances (`planner_instances`), and prints how many are within the wanted gap
in the wanted time, the median gap, the 95th percentile and the worst, and whether that is what was
wanted. Searches look at the clock between attempts, and the last one has to be simulated: a tenth
more time is still in time. Plans of at most a million ops are held against the independent
validator; one that does not hold ends the benchmark.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crosspipe_ray.compiled import SWITCH
from crosspipe_ray.errors import InfeasibleError, InputError
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.placement import Pattern, place
from crosspipe_ray.planners.portfolio import METHODS, Budget, plan
from crosspipe_ray.problem import Problem
from tests.benchmarks.first_answer import answer_of
from tests.benchmarks.planner_instances import (
    DELAYS,
    US,
    Instances,
    heterogeneous,
    instance,
    layers_problem,
)
from tests.unit.plan_checks import check_plan

SIX_POINTS = [(regions, delay) for regions in (2, 4) for delay in DELAYS[2:]]
SHARE = 0.95  # of the instances that are to be as good as wanted
LATE = 1.1  # times the limit: still in time
MOST_CHECKED_OPS = 1_000_000  # as many as a plan in JSON may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Instances):
    """One line of the table: instances, and what is wanted of their plans.

    Attributes:
        num_instances: that are planned unless the command says how many.
        most_gib: that the process may hold.
        first_plan_s: until there is any plan.
    """

    name: str
    wanted_gap: float
    time_limit_s: float
    num_instances: int = 50
    most_gib: float = math.inf
    first_plan_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an instance.

    Attributes:
        first_s, first_gap: of the first plan that a search told of.
    """

    gap: float
    seconds: float
    first_s: float
    first_gap: float

    def is_within(self, row: Row) -> bool:
        """Whether it is as good as wanted, in time."""
        return self.gap <= row.wanted_gap and self.seconds <= LATE * row.time_limit_s


def _largest(name: str, wanted_gap: float, spread: float) -> Row:
    # Memory 1x, 4 regions and T_lat = 2 T_F first, as there are seldom more than two instances.
    hard = (4, 20)
    return Row(
        name=name,
        sizes=((1024, 4096),),
        wanted_gap=wanted_gap,
        time_limit_s=60.0,
        spreads=(spread,),
        seeds=(*hard, *(seed for seed in range(1000) if seed not in hard)),
        num_instances=2,
        most_gib=4.0,
        first_plan_s=15.0,
    )


ROWS = (
    Row(name="8x16", sizes=((8, 16),), wanted_gap=0.002, time_limit_s=1.0),
    Row(name="16x32", sizes=((16, 32),), wanted_gap=0.002, time_limit_s=3.0),
    Row(
        name="one-per-rank",
        sizes=tuple(itertools.product((2, 4, 6, 8, 12, 16), (8, 16, 32))),
        wanted_gap=0.002,
        time_limit_s=3.0,
    ),
    Row(
        name="64x256-equal",
        sizes=((64, 256),),
        wanted_gap=0.002,
        time_limit_s=1.0,
        spreads=(0.0,),
    ),
    Row(
        name="64x256-unequal",
        sizes=((64, 256),),
        wanted_gap=0.01,
        time_limit_s=10.0,
        spreads=(0.4,),
    ),
    _largest("1024x4096-equal", 0.01, 0.0),
    _largest("1024x4096-unequal", 0.02, 0.4),
    Row(
        name="wave",
        sizes=((8, 32),),
        wanted_gap=0.005,
        time_limit_s=5.0,
        pattern=Pattern.WAVE,
        memories=(2,),
    ),
)
FIRST_ANSWERS = Instances(sizes=((8, 32),))


def run_row(row: Row, seeds: Iterable[int]) -> None:
    """Plans the instances and prints the line."""
    made = [_outcome(instance(row, seed), row) for seed in seeds]
    gaps = sorted(each.gap for each in made)
    within = sum(each.is_within(row) for each in made) / len(made)
    latest = max(made, key=lambda each: each.first_s)
    held_gib = _memory_gib()
    first = f"first plan {latest.first_s:.1f} s, gap {latest.first_gap:.2%}  "
    print(
        f"{row.name:17} {within:4.0%} of {len(made)} within {row.wanted_gap:.1%} in "
        f"{row.time_limit_s:g} s  {_spread(gaps)}  longest {max(o.seconds for o in made):.2f} s  "
        f"{first if row.first_plan_s < math.inf else ''}{held_gib:.1f} GiB  "
        + _verdict(
            within >= SHARE and held_gib <= row.most_gib and latest.first_s <= row.first_plan_s
        ),
        flush=True,
    )


def _outcome(problem: Problem, row: Row) -> Outcome:
    told: list[tuple[float, float]] = []

    def note(makespan_ns: int, bound_ns: int) -> None:
        told.append((time.perf_counter() - started, makespan_ns / bound_ns - 1))

    budget = Budget(time_limit_s=row.time_limit_s, gap=row.wanted_gap, on_progress=note)
    started = time.perf_counter()
    made, seconds = _timed(problem, budget)
    if 3 * len(problem.stages) * problem.num_microbatches <= MOST_CHECKED_OPS:
        check_plan(made)
    return Outcome(made.gap, seconds, *(told[0] if told else (seconds, made.gap)))


def _timed(problem: Problem, budget: Budget) -> tuple[Plan, float]:
    started = time.perf_counter()
    return plan(problem, budget=budget), time.perf_counter() - started


def _memory_gib() -> float:
    """Most that the process has held so far, in all rows."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _spread(gaps: Sequence[float]) -> str:
    """Of gaps that are sorted."""
    return f"median {_at(gaps, 0.5):.3%}  p95 {_at(gaps, 0.95):.3%}  worst {gaps[-1]:.3%}"


def _at(values: Sequence[float], share: float) -> float:
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _verdict(is_held: bool) -> str:
    return "ok" if is_held else "MISSED"


def run_placements(time_limit_s: float = 6.0) -> None:
    """8 ranks x 16, memory 1x: any placement against equal stages, one per rank or in a wave."""
    ratios, num_proven = [], 0
    budget = Budget(time_limit_s=time_limit_s)
    for regions, delay in SIX_POINTS:
        problem = layers_problem(regions, delay)
        known = {
            pattern: plan(place(problem, pattern, num_stages_per_rank=visits), budget=budget)
            for pattern, visits in ((Pattern.ONE_PER_RANK, 1), (Pattern.WAVE, 2))
        }
        found = plan(problem, budget=budget)
        for made in (*known.values(), found):
            check_plan(made, asked=problem)
        ratios.append(_in_forwards(found) / min(map(_in_forwards, known.values())))
        num_proven += known[Pattern.ONE_PER_RANK].status == "proven"
        print(
            f"  {regions} regions {delay}: "
            + ", ".join(f"{p.value} {_in_forwards(m):.2f} ({m.status})" for p, m in known.items())
            + f", any {_in_forwards(found):.2f} on {found.problem.rank_of_stage}, "
            f"layers {[len(range(*stage.layers or ())) for stage in found.problem.stages]}",
            flush=True,
        )
    shorter = 1 - math.prod(ratios) ** (1 / len(ratios))
    print(
        f"placements        {shorter:.1%} shorter on the geometric mean (wanted 4 %)  "
        f"one per rank proven at {num_proven} of {len(SIX_POINTS)}  "
        + _verdict(shorter >= 0.04 and num_proven == len(SIX_POINTS))
    )


def _in_forwards(made: Plan) -> float:
    return made.timeline.makespan_ns / US / 1000


def run_heterogeneous(num_seeds: int, time_limit_s: float = 1.0) -> None:
    """Unequal everything: never worse than a fixed schedule; the median gap in one second."""
    gaps, worse, in_time = [], 0, 0
    for seed in range(num_seeds):
        problem = heterogeneous(seed)
        made, seconds = _timed(problem, Budget(time_limit_s=time_limit_s))
        check_plan(made)
        gaps.append(made.gap)
        in_time += seconds <= LATE * time_limit_s
        fixed_ns = [fixed.timeline.makespan_ns for fixed in _fixed_plans(problem)]
        worse += made.timeline.makespan_ns > min(fixed_ns)
    gaps.sort()
    print(
        f"heterogeneous     {in_time / num_seeds:4.0%} of {num_seeds} in {time_limit_s:g} s  "
        f"{worse} worse than a fixed schedule  {_spread(gaps)} (wanted: median 2 %)  "
        + _verdict(not worse and in_time >= SHARE * num_seeds and _at(gaps, 0.5) <= 0.02)
    )


def _fixed_plans(problem: Problem) -> Iterable[Plan]:
    """By all methods that do not search, where they fit."""
    for method in METHODS.values():
        if not method.is_search:
            try:
                made = plan(problem, method=method.name)
            except (InputError, InfeasibleError):
                continue  # another placement, or more memory
            check_plan(made)
            yield made


def run_first_answers(seeds: Sequence[int], wanted_s: float = 1.5) -> None:
    """`crosspipe plan --method greedy` in fresh processes: when it first shows a makespan."""
    answers = [answer_of(instance(FIRST_ANSWERS, seed), method="greedy") for seed in seeds]
    first = sorted(answer.first_s for answer in answers)
    ends = sorted(answer.end_s for answer in answers if answer.is_proven)
    proofs = (
        f", after {_at(ends, 0.5):.2f} s by the median, {ends[-1]:.2f} s at most" if ends else ""
    )
    within = sum(seconds <= wanted_s for seconds in first) / len(first)
    print(
        f"first-answer      {within:4.0%} of {len(first)} within {wanted_s:g} s  "
        f"median {_at(first, 0.5):.2f} s  p95 {_at(first, 0.95):.2f} s  worst {first[-1]:.2f} s  "
        f"{len(ends)} end with a proof{proofs}  " + _verdict(within >= SHARE)
    )


def main() -> None:
    """Runs the rows that are asked for, or all."""
    names = [*(row.name for row in ROWS), "placements", "heterogeneous", "first-answer"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(names))
    parser.add_argument(
        "--instances", type=int, help="default: 50; 2 of 1024x4096, 200 of heterogeneous"
    )
    arguments = parser.parse_args()
    wanted = arguments.rows or names
    os.environ.setdefault(SWITCH, "always")
    plan(instance(ROWS[0], 0), method="optimal")  # loads solver and loops: a row measures planning
    for row in ROWS:
        if row.name in wanted:
            run_row(row, row.seeds[: arguments.instances or row.num_instances])
    if "placements" in wanted:
        run_placements()
    if "heterogeneous" in wanted:
        run_heterogeneous(arguments.instances or 200)
    if "first-answer" in wanted:
        run_first_answers(FIRST_ANSWERS.seeds[: arguments.instances or 50])


if __name__ == "__main__":
    main()
