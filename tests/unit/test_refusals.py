"""Mistakes that users make: each is one line that says what would be right, and nothing is left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosspipe_ray.errors import InputError
from crosspipe_ray.files import write_atomically
from crosspipe_ray.planners import portfolio
from tests.unit.command import Command

Edit = Callable[[dict[str, Any]], None]
SPLIT = {"op": "0F0", "start_us": 0, "end_us": 500, "part": [0, 1, 2]}


def edited(name: str, edit: Edit, output: str) -> str:
    content = json.loads(Path(name).read_text())
    edit(content)
    Path(output).write_text(json.dumps(content))
    return output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clusters", "us,us"], "--clusters us,us: give names that differ"),
        (["--clusters", "a,b,c,d,e"], "--clusters a,b,c,d,e: more than the 4 ranks"),
        (["--bandwidth-ratio", "1", "--output-bytes", "0"], "messages of --output-bytes 0 take no"),
        (["--memory", "inf"], "--memory inf: leave it out for no limit"),
        (["--forward-us", "1e300"], "forward_us: input should be less than or equal to"),
    ],
)
def test_numbers_that_make_no_problem(crosspipe: Command, options: list[str], message: str) -> None:
    code, error = crosspipe.fails("problem", "--ranks", "4", "--num-microbatches", "4", *options)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_one_rank_needs_no_second_cluster(crosspipe: Command) -> None:
    made = json.loads(crosspipe("problem", "--ranks", "1", "--num-microbatches", "2"))
    assert made["ranks"] == [{"cluster": "us"}]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["problem", "--ranks", "2", "--num-microbatches", "2", "-o"], "no/problem.json"),
        (["plan", "p.json", "-o"], "no/plan.parquet"),
        (["show", "plan.json", "--svg"], "no/plan.svg"),
        (["show", "plan.json", "--trace"], "no/trace.json"),
        (["export", "plan.json", "-o"], "no/plan.csv"),
        (["compare", "p.json", "--svg"], "no/all.svg"),
        (["compare", "p.json", "--output"], "no/all.md"),
        (["bench", "paper-tables", "--output"], "no/tables.md"),
        (["rehearse", "plan.json", "--svg"], "no/steps.svg"),
        (["rehearse", "plan.json", "--no-emulate-links", "--corrected"], "no/problem.json"),
    ],
)
def test_a_missing_folder_is_found_before_any_work(
    crosspipe: Command, plan_file: str, arguments: list[str], file: str
) -> None:
    assert plan_file == "plan.json"
    assert crosspipe.fails(*arguments, file) == (2, f"error: {file}: there is no folder no\n")


@pytest.mark.parametrize("option", ["--svg", "--trace"])
def test_a_folder_in_place_of_a_file(crosspipe: Command, plan_file: str, option: str) -> None:
    Path("taken").mkdir()
    code, error = crosspipe.fails("show", plan_file, option, "taken")
    assert (code, error) == (2, "error: taken: is a folder; name a file\n")
    assert {each.name for each in Path().iterdir()} == {"p.json", "plan.json", "taken"}


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken: cannot be written: Is a directory"):
        write_atomically(tmp_path / "taken", "content")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_too_little_memory_of_this_machine_is_one_line(
    crosspipe: Command, problem_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 75 GiB")

    monkeypatch.setattr(portfolio, "plan", too_large)
    code, error = crosspipe.fails("plan", problem_file)
    assert (code, error) == (
        1,
        "error: this machine has too little memory for that: Unable to allocate 75 GiB\n",
    )


def test_a_plan_in_place_of_a_problem_and_the_other_way(
    crosspipe: Command, problem_file: str, plan_file: str
) -> None:
    code, error = crosspipe.fails("plan", plan_file)
    assert (code, error.startswith("error: plan.json: a plan, no problem")) == (2, True)
    code, error = crosspipe.fails("show", problem_file)
    assert (code, "p.json: a problem, no plan; make one with `crosspipe plan`" in error) == (
        2,
        True,
    )
    crosspipe("plan", problem_file, "--method", "zb-h1", "-o", "plan.parquet")
    code, error = crosspipe.fails("plan", "plan.parquet")
    assert (code, error) == (2, "error: plan.parquet: not JSON: no text in UTF-8\n")


def test_other_and_broken_parquet(crosspipe: Command, problem_file: str) -> None:
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    crosspipe("plan", problem_file, "--method", "zb-h1", "-o", "plan.parquet")
    Path("cut.parquet").write_bytes(Path("plan.parquet").read_bytes()[:1000])
    Path("named.json").write_bytes(Path("plan.parquet").read_bytes())
    code, error = crosspipe.fails("simulate", "other.parquet")
    assert (code, error) == (
        2,
        "error: other.parquet: no plan: its metadata has no crosspipe_plan\n",
    )
    code, error = crosspipe.fails("simulate", "cut.parquet")
    assert (code, error.startswith("error: cut.parquet: not the Parquet of a plan: ")) == (2, True)
    assert error.count("\n") == 1
    assert "makespan 21.000 ms" in crosspipe("simulate", "named.json")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(max_sub_blocks=0), "max_sub_blocks: input should be greater than or"),
        (lambda p: p.update(max_sub_blocks=65), "max_sub_blocks: input should be less than or"),
        (lambda p: p["stages"][0].update(forward_us=1e300), "stages.0.forward_us: input should"),
        (lambda p: p["stages"][0].update(output_bytes=10**30), "stages.0.output_bytes: input"),
        (lambda p: p.update(num_microbatches=10**12), "num_microbatches: input should be less"),
        (lambda p: p["links"][0].update(latency_us=1e17), "links.0.latency_us: input should be"),
        (
            lambda p: p["links"][0].update(bandwidth_bytes_per_s=1e-300),
            "links.0.bandwidth_bytes_per_s: input should be greater than or equal to 1",
        ),
        (
            lambda p: p["links"][0].update(latency_samples_us=[-1]),
            "links.0.latency_samples_us.0: input should be greater than or equal to 0",
        ),
        (
            lambda p: p["links"][0].update(bandwidth_curve=[[0, 1e6], [9, 0]]),
            "links.0.bandwidth_curve.1.1: input should be greater than or equal to 1 (got 0)",
        ),
    ],
)
def test_numbers_beyond_any_step(
    crosspipe: Command, problem_file: str, edit: Edit, message: str
) -> None:
    code, error = crosspipe.fails("plan", edited(problem_file, edit, "edited.json"))
    assert (code, error.count("\n")) == (2, 1)
    assert f"edited.json: {message}" in error


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["ranks"][0][0].update(part=[0, 2, 10**20]), "ranks.0.0.part.2: input should"),
        (lambda p: p["ranks"][0][0].update(start_us=1e300), "ranks.0.0.start_us: input should be"),
        (lambda p: p.update(sends=[SPLIT | {"src": 10**30, "dst": 1, "arrive_us": 1}]), "sends.0"),
        (lambda p: p.update(lower_bound_us=1e6), "lower_bound_us is 1000000.000, more than the"),
        (
            lambda p: p.update(lower_bound_us=1, status="proven"),
            "status is proven, but lower_bound_us is 1.000, less than the",
        ),
    ],
)
def test_plans_with_numbers_that_no_plan_has(
    crosspipe: Command, plan_file: str, edit: Edit, message: str
) -> None:
    code, error = crosspipe.fails("simulate", edited(plan_file, edit, "edited.json"))
    assert (code, error.count("\n")) == (2, 1)
    assert f"edited.json: {message}" in error


def test_parts_have_no_word_in_csv_and_the_file_is_named(crosspipe: Command) -> None:
    shape = ["--ranks", "4", "--num-microbatches", "6", "--memory", "1", "--latency-ratio", "1"]
    crosspipe("problem", *shape, "--backward-input-us", "1280", "-o", "p.json")
    parts = edited("p.json", lambda p: p.update(max_sub_blocks=4), "parts.json")
    crosspipe("plan", parts, "--method", "crosspipe-greedy", "-o", "split.json")
    assert '"part"' in Path("split.json").read_text()
    code, error = crosspipe.fails("export", "split.json", "-o", "split.csv")
    assert (code, error.startswith("error: split.json: ops are split in parts")) == (2, True)
    assert not Path("split.csv").exists()


def test_the_switch_of_the_compiler(
    crosspipe: Command, problem_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSPIPE_COMPILE", "maybe")
    code, error = crosspipe.fails("plan", problem_file, "--method", "greedy")
    assert (code, error) == (
        2,
        "error: CROSSPIPE_COMPILE=maybe: it must be 'always' or 'never', or not set\n",
    )


def test_streams_without_their_transport(crosspipe: Command, plan_file: str) -> None:
    code, error = crosspipe.fails("rehearse", plan_file, "--num-streams", "4")
    assert (code, error) == (
        2,
        "error: --num-streams: only --transport streams has them; give both\n",
    )


def test_more_threads_than_any_machine_has(crosspipe: Command, problem_file: str) -> None:
    code, error = crosspipe.fails("plan", problem_file, "--workers", "1000000")
    assert (code, "Invalid value for '--workers'" in error) == (2, True)


@pytest.mark.parametrize("command", [["plan"], ["compare"], ["bench", "paper-tables"]])
@pytest.mark.parametrize("seed", ["-1", "2147483648"])
def test_seeds_that_no_search_takes(
    crosspipe: Command, problem_file: str, command: list[str], seed: str
) -> None:
    files = [] if command[0] == "bench" else [problem_file]
    code, error = crosspipe.fails(*command, *files, "--seed", seed)
    assert (code, "Invalid value for '--seed'" in error) == (2, True)
