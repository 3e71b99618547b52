from __future__ import annotations

from dataclasses import replace

from crosspipe_ray.clock_estimate import ASYMMETRY, HostClock
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.report.summary import RunSummary, StepTimes, headline, summary_markdown
from tests.unit.test_run_profile import config, profile

MADE = plan(generate(Recipe(num_ranks=2, num_microbatches=2)), method="1f1b")
SUMMARY = RunSummary(
    losses=[3.0, 2.0],
    held_out=None,
    unigram_entropy=2.5,
    plan=MADE,
    attempts=(),
    times=StepTimes(0.02, 0.01, 0.001, 0.001, 0.3),
    one_f_one_b_ns=None,
    tokens_per_s=1000.0,
    predictions=(),
)


def test_the_profile_is_one_compact_row() -> None:
    row = dict(headline(replace(SUMMARY, profile=profile(config()))))["profile"]
    times = "F 1.00 ms (+-1%), I 2.02 ms (+-2%), W 0.00 ms (+-3%)"
    assert row == f"a block {times}; an op 20 us besides"


def test_a_profile_of_an_earlier_run_says_when_that_was() -> None:
    earlier = profile(config()).model_copy(update={"source": "run"})
    row = dict(headline(replace(SUMMARY, profile=earlier)))["profile"]
    assert row.endswith(f"; from a run until {earlier.measured_at:%F %R}")


def test_clocks_are_shown_where_there_are_several() -> None:
    clock = HostClock(at_ns=0, offset_ns=5_000_000)
    text = summary_markdown(replace(SUMMARY, clocks={1: clock}), title="run")
    assert "## Clocks" in text
    assert "| 1 | +5.000 ms |" in text
    assert ASYMMETRY in text


def test_one_clock_and_no_profile_are_not_spoken_of() -> None:
    text = summary_markdown(SUMMARY, title="run")
    assert "Clocks" not in text
    assert "profile.json" not in text
