import pytest

from crosspipe_ray.benchmarks import paper_tables
from crosspipe_ray.benchmarks.paper_tables import problem_of, published_points, report_lines, rows
from crosspipe_ray.planners.portfolio import Budget


def test_published_ratios_are_to_1f1b_with_16_microbatches_at_the_same_point() -> None:
    points = published_points()
    assert len(points) == 20
    first, last = points[0].published, points[-1].published
    assert first["1F1B"] == 1.0
    assert first["CrossWave"] == pytest.approx(0.119 / 0.151)
    assert "1F1B" not in last
    assert last["CrossUD"] == pytest.approx(0.178 / 0.359)


def test_without_delay_the_model_is_close_to_the_measured_runs() -> None:
    (row,) = rows(published_points()[:1], Budget(time_limit_s=0.5))
    for column in ("best", "ZBH1", "ZBV", "CrossUDSub", "CrossUD", "CrossWave"):
        assert row.ours[column] == pytest.approx(row.published[column], rel=0.06), column
    report = "".join(report_lines([row]))
    assert "## Table 5: 2 regions, 16 microbatches, memory 1x\n\n| T_lat | T_bw | best" in report
    assert "| 0 | 0 | 0.78 / " in report
    assert paper_tables.LIMITS in report


def test_latency_grows_with_the_distance_of_the_regions() -> None:
    problem = problem_of(published_points()[-1])
    latencies = {(link.src, link.dst): link.latency_us for link in problem.links}
    assert latencies["r0", "r3"] == 3 * latencies["r1", "r0"] == 3 * 2 * 1200
