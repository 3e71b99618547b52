import json
from pathlib import Path
from typing import Any

import pytest

from crosspipe_ray.costs import check_memory_suffices, stage_costs
from crosspipe_ray.errors import InfeasibleError, ProblemError
from crosspipe_ray.ops import Kind
from crosspipe_ray.problem import Problem, problem_json, read_problem
from tests.unit.builders import make_problem, problem_data

# The example of the format's description.
EXAMPLE = {
    "version": 1,
    "num_microbatches": 16,
    "ranks": [{"cluster": "us", "memory_limit_bytes": 32000}, {"cluster": "eu"}],
    "stages": [
        {
            "rank": rank,
            "forward_us": 1000,
            "backward_input_us": 1000,
            "backward_weight_us": 1000,
            "activation_bytes": 4000,
            "freed_by_backward_input_bytes": 200,
            "output_bytes": 1000000,
            "input_gradient_bytes": 1000000,
        }
        for rank in (0, 1)
    ],
    "links": [
        {
            "src": 0,
            "dst": 1,
            "latency_us": 2000,
            "bandwidth_bytes_per_s": 500000000,
            "channel": "us->eu",
        }
    ],
}


def read(tmp_path: Path, data: Any) -> Problem:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(data))
    return read_problem(path)


def test_example_of_the_format_reads_back(tmp_path: Path) -> None:
    problem = read(tmp_path, EXAMPLE)
    assert read(tmp_path, problem_json(problem)) == problem
    assert problem_json(problem)["stages"] == EXAMPLE["stages"]


def test_stages_of_ranks() -> None:
    problem = make_problem((0, 1, 2, 2, 1, 0), 1)
    assert problem.rank_of_stage == (0, 1, 2, 2, 1, 0)
    assert problem.stages_of_rank == ((0, 5), (1, 4), (2, 3))


def test_costs_are_integer_nanoseconds() -> None:
    data = problem_data((0, 1), 1, rank={"op_overhead_us": 0.25}, links=EXAMPLE["links"])
    first = stage_costs(Problem.model_validate(data))[0]
    assert first.duration_ns == (1250, 1250, 1250, 2250)
    assert first.output is not None
    assert first.output.delay_ns == 2000 + 2_000_000


def test_gradient_is_as_large_as_the_input_by_default() -> None:
    data = problem_data((0, 1, 2), 1)
    data["stages"][0]["output_bytes"] = 7
    data["stages"][2]["input_gradient_bytes"] = 9
    costs = stage_costs(Problem.model_validate(data))
    assert [cost.gradient.num_bytes for cost in costs if cost.gradient] == [7, 9]


def test_ends_of_the_pipeline_send_nothing_outwards() -> None:
    first, last = stage_costs(make_problem((0, 1), 1))
    assert first.transfer(Kind.I) is None
    assert last.transfer(Kind.F) is None


def test_fused_backward_of_a_stage_goes_before_the_problems() -> None:
    data = problem_data((0, 1), 1, fused_backward=True)
    data["stages"][1]["fused_backward"] = False
    problem = Problem.model_validate(data)
    assert [problem.is_fused(stage) for stage in (0, 1)] == [True, False]


def test_digest_is_independent_of_how_the_problem_was_written() -> None:
    data = problem_data((0, 1), 2)
    written = json.loads(json.dumps(data, sort_keys=True))
    written["stages"][0]["forward_us"] = 1.0
    written |= {"version": 1, "links": [], "fused_backward": False}
    written["ranks"][0] |= {"cluster": "default", "memory_limit_bytes": None}
    assert Problem.model_validate(written).sha256 == Problem.model_validate(data).sha256


def test_a_copy_with_other_stages_derives_its_own() -> None:
    problem = make_problem((0, 1, 2, 2, 1, 0), 1)
    before = problem.sha256, problem.stages_of_rank, problem.rank_of_stage
    copied = problem.model_copy(update={"stages": problem.stages[:3]})
    assert copied.rank_of_stage == problem.rank_of_stage[:3]
    assert copied.stages_of_rank == ((0,), (1,), (2,))
    assert copied.sha256 != problem.sha256
    assert (problem.sha256, problem.stages_of_rank, problem.rank_of_stage) == before


def test_digest_changes_with_the_problem() -> None:
    assert make_problem((0, 1), 2).sha256 != make_problem((0, 1), 3).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_microbatches": 0}, "num_microbatches: input should be greater than 0 (got 0)"),
        ({"version": 2}, "version: input should be 1 (got 2)"),
        ({"num_microbatch": 1}, "num_microbatch: unknown field; did you mean 'num_microbatches'?"),
        ({"ranks": []}, "ranks: input should have a length of at least 1"),
        ({"ranks": [{}]}, "stages.1.rank: no rank 1; ranks are 0 to 0"),
        ({"ranks": [{}, {}, {}]}, "rank 2 has no stage"),
        ({"ranks": [{}, {"memory_limit": 3}]}, "ranks.1.memory_limit: unknown field; did you mean"),
        ({"stages": []}, "give either stages or layers"),
        ({"links": [{"src": 0, "dst": 2}]}, "links.0: no rank 2; ranks are 0 to 1"),
        ({"links": [{"src": "us", "dst": "default"}]}, "links.0: no cluster 'us'; there are"),
        ({"links": [{"src": 0, "dst": "default"}]}, "links.0: src and dst must both be ranks or"),
        ({"links": [{"src": 0, "dst": 1}] * 2}, "links.1: 0->1 is given twice"),
        (
            {"links": [{"src": "default", "dst": "default"}] * 2},
            "links.1: default->default is given twice",
        ),
        ({"links": [{"src": None, "dst": 1}]}, "links.0.src: must be the number of a rank or"),
        ({"links": [{"src": 0, "dst": 1, "latency_us": -1}]}, "links.0.latency_us: input should"),
        (
            {"links": [{"src": 0, "dst": 1, "bandwidth_bytes_per_s": 0}]},
            "links.0.bandwidth_bytes_per_s: input should be greater than or equal to 1 (got 0)",
        ),
        (
            {"links": [{"src": 0, "dst": 1, "bandwidth_curve": [[2, 1], [1, 1]]}]},
            "links.0: bandwidth_curve must be points of growing size",
        ),
        ({"max_sub_blocks": 0}, "max_sub_blocks: "),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError) as caught:
        read(tmp_path, {**problem_data((0, 1), 2), **change})
    assert str(caught.value).startswith(f"{tmp_path / 'problem.json'}: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_us": -1}, "stages.1.forward_us: "),
        ({"forward_us": float("inf")}, "stages.1.forward_us: input should be a finite number"),
        ({"forwrd_us": 1}, "stages.1.forwrd_us: unknown field; did you mean 'forward_us'?"),
        ({"activation_bytes": 0.5}, "stages.1.activation_bytes: "),
        (
            {"activation_bytes": 3, "freed_by_backward_input_bytes": 4},
            "stages.1: freed_by_backward_input_bytes 4 is more than activation_bytes 3",
        ),
    ],
)
def test_wrong_field_of_a_stage_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = problem_data((0, 1), 2)
    data["stages"][1] |= change
    with pytest.raises(ProblemError) as caught:
        read(tmp_path, data)
    assert message in str(caught.value)


def test_memory_that_no_schedule_fits_names_rank_and_bytes() -> None:
    problem = make_problem(
        (0, 1, 1, 0),
        4,
        rank={"cluster": "eu", "memory_limit_bytes": 25},
        stage={"activation_bytes": 10, "weight_bytes": 3},
    )
    with pytest.raises(InfeasibleError, match=r"rank 0 \(eu\): .* 1 bytes too few; .* needs 26"):
        check_memory_suffices(problem)


def test_rank_that_lacks_the_most_is_named() -> None:
    data = problem_data((0, 1, 2), 4, rank={"memory_limit_bytes": 5}, stage={"activation_bytes": 7})
    data["ranks"][0]["memory_limit_bytes"] = 9
    data["ranks"][2]["memory_limit_bytes"] = 4
    with pytest.raises(
        InfeasibleError, match=r"rank 2 .* 3 bytes too few; .* needs 7; others lack as much or less"
    ) as caught:
        check_memory_suffices(Problem.model_validate(data))
    assert caught.value.missing_bytes == 3
