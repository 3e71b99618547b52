from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.report.prediction import predictions, predictions_markdown, rehearsal_markdown
from crosspipe_ray.simulate import simulate

CLUSTERS = ("us", "us", "eu", "eu")
RECIPE = Recipe(num_ranks=4, num_microbatches=4, latency_ratio=1.0, bandwidth_ratio=0.5)


def test_a_run_as_planned_has_no_deviation() -> None:
    timeline = plan(generate(RECIPE), method="zb-h1").timeline
    rows = predictions(timeline, [timeline], clusters=CLUSTERS)
    assert {row.deviation for row in rows} == {0.0}
    assert [row.group for row in rows] == ["makespan", *["op"] * 3, *["message"] * 2, *["rank"] * 4]


def test_slower_links_show_in_messages_and_makespan_only() -> None:
    made = plan(generate(RECIPE), method="1f1b")
    slow = generate(Recipe(num_ranks=4, num_microbatches=4, latency_ratio=2.5, bandwidth_ratio=0.5))
    rows = predictions(made.timeline, [simulate(slow, made.schedule)], clusters=CLUSTERS)
    deviations = {(row.group, row.name): row.deviation or 0.0 for row in rows}
    assert deviations["message", "us -> eu"] == 3000 / 1500 - 1
    assert deviations["makespan", ""] > 0
    assert deviations["op", "B"] == deviations["rank", "0 busy"] == 0.0


def test_messages_that_were_to_take_no_time_have_no_deviation() -> None:
    free = plan(generate(Recipe(num_ranks=4, num_microbatches=4)), method="1f1b").timeline
    slow = plan(generate(RECIPE), method="1f1b").timeline
    table = predictions_markdown(predictions(free, [slow], clusters=CLUSTERS))
    assert "| message us -> eu | 0.00 ms | 1.50 ms | - |" in table


def test_a_rehearsal_on_several_clocks_says_so() -> None:
    made = plan(generate(RECIPE), method="zb-h1")
    table = rehearsal_markdown(made, [made.timeline], {})
    clock = HostClock(at_ns=0, offset_ns=5_000_000)
    both = rehearsal_markdown(made, [made.timeline], {2: clock, 3: clock})
    assert both.startswith(table)
    assert "| 2, 3 | +5.000 ms |" in both.removeprefix(table)


def test_the_table_has_a_line_for_each_figure() -> None:
    timeline = plan(generate(RECIPE), method="zb-h1").timeline
    rows = predictions(timeline, [timeline], clusters=CLUSTERS)
    assert len(predictions_markdown(rows).splitlines()) == 2 + len(rows)
