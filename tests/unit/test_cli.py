"""What a user sees: output, one line per mistake, exit codes, and nothing left behind."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crosspipe_ray.benchmarks.paper_tables import published_points
from crosspipe_ray.plan import Plan, read_plan
from crosspipe_ray.planners.portfolio import METHODS, Budget
from crosspipe_ray.planners.portfolio import plan as make_plan
from crosspipe_ray.problem import Problem
from tests.unit.command import Command

ENDS = (("us", "eu"), ("eu", "us"))
Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def edit(name: str, **changes: object) -> None:
    content = json.loads(Path(name).read_text())
    Path(name).write_text(json.dumps(content | changes))


def test_plan_simulate_show_export(crosspipe: Command, plan_file: str) -> None:
    assert "makespan 21.000 ms" in crosspipe("simulate", plan_file)
    assert crosspipe("show", plan_file, "--svg", "plan.svg").count("rank") == 4
    assert Path("plan.svg").read_text().startswith("<svg")
    crosspipe("export", plan_file, "--output", "plan.csv")
    assert "makespan 21.000 ms" in crosspipe("simulate", "p.json", "--schedule", "plan.csv")


def test_show_names_the_transport_of_each_link(crosspipe: Command, problem_file: str) -> None:
    link = {"src": "us", "dst": "eu", "transport": "streams", "streams": 4}
    edit(problem_file, links=[link, {"src": "eu", "dst": "us", "transport": "collective"}])
    crosspipe("plan", problem_file, "--method", "1f1b", "-o", "plan.json")
    shown = crosspipe("show", "plan.json").splitlines()
    assert shown[-2:] == ["link us->eu: streams x 4", "link eu->us: collective"]
    edit(problem_file, links=[link | {"transport": "stream"}])
    code, message = crosspipe.fails("plan", problem_file)
    assert (code, message.count("\n")) == (2, 1)
    assert "links.0.transport: input should be 'collective', 'object_store' or 'strea" in message


def test_auto_shows_what_it_tried_and_takes_the_shortest(
    crosspipe: Command, problem_file: str
) -> None:
    lines = crosspipe("plan", problem_file).splitlines()
    assert {line.split()[0] for line in lines[1:-1]} >= {
        "1f1b",
        "zb-h1",
        "crosspipe-greedy",
        "gpipe",
    }
    assert "does not" in next(line for line in lines if line.startswith("gpipe"))
    assert lines[1].split()[0] == lines[-1].split(":")[0]


def test_what_one_method_proves_holds_for_all_rows(crosspipe: Command) -> None:
    sizes = ("--ranks", "2", "--num-microbatches", "6", "--placement", "wave", "--memory", "1")
    links = ("--latency-ratio", "1", "--bandwidth-ratio", "0.5")
    crosspipe("problem", *sizes, *links, "-o", "wave.json")
    *rows, verdict = crosspipe("plan", "wave.json").splitlines()
    shortest = [row for row in rows if "27.50 ms" in row]
    assert len(shortest) > 1
    assert {"proven" in row for row in shortest} == {"proven" in verdict}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], Budget()),
        (["--time-limit", "7.5"], Budget(time_limit_s=7.5)),
        (["--iterations", "7"], Budget(time_limit_s=math.inf, iterations=7)),
        (["--seed", "7"], Budget(seed=7)),
        (["--workers", "7"], Budget(workers=7)),
    ],
    ids=["defaults", "time-limit", "iterations", "seed", "workers"],
)
def test_options_of_the_search_reach_it(
    crosspipe: Command,
    problem_file: str,
    options: list[str],
    wanted: Budget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Budget] = []

    def plan(problem: Problem, *, budget: Budget, **_: object) -> Plan:
        given.append(budget)
        return make_plan(problem, method="1f1b")

    monkeypatch.setattr("crosspipe_ray.planners.portfolio.plan", plan)
    crosspipe("plan", problem_file, *options)
    asked = [replace(budget, time_limit_s=round(budget.time_limit_s, 1)) for budget in given]
    assert asked == [wanted]


def test_pieces_are_tried_and_named(crosspipe: Command, problem_file: str) -> None:
    lines = crosspipe("plan", problem_file, "--pieces", "2, 1,2", "-o", "plan.json").splitlines()
    assert any("as given in 2 " in line for line in lines)
    assert lines[-2] == "the best has microbatches in 2 pieces"
    assert "(proven optimal for 2 pieces)" in lines[-1]
    assert json.loads(Path("plan.json").read_text())["problem"]["num_microbatches"] == 12


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ("1,x", "--pieces 1,x: give whole numbers from 1 on, as in 1,2,4"),
        ("0", "--pieces 0: give whole numbers from 1 on"),
        ("1,500000", "--pieces 1,500000: 6 microbatches may be in at most 166666 pieces each"),
    ],
)
def test_pieces_that_cannot_be(
    crosspipe: Command, problem_file: str, pieces: str, message: str
) -> None:
    code, printed = crosspipe.fails("plan", problem_file, "--pieces", pieces)
    assert code == 2
    assert message in printed


def test_compare_lists_methods_by_makespan(crosspipe: Command, problem_file: str) -> None:
    arguments = ("--time-limit", "1", "--svg", "all.svg", "--output", "all.md")
    lines = crosspipe("compare", problem_file, *arguments).splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert set(names) == set(METHODS)
    assert names.index("zb-h1") < names.index("1f1b")
    assert "proven" in lines[1]
    assert "zb-v does not fit: stages: zb-v needs the placement 'wave'" in "".join(lines)
    assert "| greedy | as given | " in Path("all.md").read_text()
    assert Path("all.svg").read_text().count('<text class="name" ') == sum(
        "does not" not in line for line in lines[1:]
    )


@pytest.fixture
def layers_file(tmp_path: Path) -> str:
    layer = {"forward_us": 1, "backward_input_us": 1, "backward_weight_us": 1}
    content = {"num_microbatches": 4, "ranks": [{}, {}], "layers": [layer] * 4}
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_compare_takes_each_methods_own_placement(crosspipe: Command, layers_file: str) -> None:
    lines = crosspipe("compare", layers_file, "--methods", "1f1b,zb-v,zb-v").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["zb-v", "wave"], ["1f1b", "one_per_rank"]]


def test_a_bound_is_for_the_placement_that_was_chosen(
    crosspipe: Command, layers_file: str, problem_file: str
) -> None:
    arguments = ("--method", "zb-h2")
    assert "(proven optimal for its placement)" in crosspipe("plan", layers_file, *arguments)
    in_pieces = crosspipe("plan", layers_file, *arguments, "--pieces", "1,2")
    assert "(proven optimal for its placement in 2 pieces)" in in_pieces
    assert "(proven optimal)" in crosspipe("plan", problem_file)


def test_compare_without_a_plan(crosspipe: Command, problem_file: str) -> None:
    code, message = crosspipe.fails("compare", problem_file, "--methods", "zb-v,gpipe")
    assert (code, "gpipe does not fit: rank 0" in message) == (3, True)
    code, message = crosspipe.fails("compare", problem_file, "--methods", "zb-v,magic")
    assert (code, "'magic': no such method" in message) == (2, True)


def test_bench_paper_tables(crosspipe: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [published_points()[0], published_points()[-1]]
    monkeypatch.setattr("crosspipe_ray.benchmarks.paper_tables.published_points", lambda: points)
    arguments = ("--table", "5", "--time-limit", "0.3", "--output", "tables.md")
    printed = crosspipe("bench", "paper-tables", *arguments)
    assert "Table 5: 2 regions" in printed
    assert "Table 6" not in printed
    assert Path("tables.md").read_text().endswith(printed)


def test_plan_for_a_quantile(crosspipe: Command, problem_file: str) -> None:
    code, message = crosspipe.fails("plan", problem_file, "--quantile", "0.95")
    assert (code, "no link of the problem gives latency_samples_us" in message) == (2, True)
    samples = {"latency_us": 1000, "latency_samples_us": [500, 1000, 1000, 9000]}
    edit(problem_file, links=[{"src": "us", "dst": "eu"} | samples])
    lines = crosspipe("plan", problem_file, "--quantile", "0.95", "-o", "plan.json").splitlines()
    assert lines[-1].startswith("over sampled links: p50 ")
    assert lines[0].split()[-1] == "p95"
    least = min(float(line.split()[-2]) for line in lines[1:] if line.endswith(" ms "))
    assert f"p95 {least:.2f}" in lines[-1]
    assert sum(line.startswith("gpipe does not fit: ") for line in lines) == 1
    content = json.loads(Path("plan.json").read_text())
    assert content["makespan_us"] <= content["p50_us"] < content["p95_us"]
    crosspipe("show", "plan.json")
    assert read_plan(Path("plan.json")).p95_ns == 1000 * content["p95_us"]


@pytest.mark.parametrize(
    ("quantile", "best", "named"), [(0.1, 2, ["p10", "p50", "p95"]), (0.95, 1, ["p50", "p95"])]
)
def test_pieces_are_chosen_by_the_quantile_which_is_named(
    crosspipe: Command, problem_file: str, quantile: float, best: int, named: list[str]
) -> None:
    samples = {"latency_us": 250, "latency_samples_us": [250, 8000]}
    edit(problem_file, links=[{"src": a, "dst": b} | samples for a, b in ENDS])
    asked = ("--method", "1f1b", "--pieces", "1,2", "--quantile", str(quantile))
    printed = crosspipe("plan", problem_file, *asked)
    assert f"the best has microbatches in {best} piece" in printed
    assert re.findall(r"(p\d+) [\d.]+ ms", printed.splitlines()[-1]) == named


def test_list_methods(crosspipe: Command) -> None:
    names = [line.split()[0] for line in crosspipe("plan", "--list-methods").splitlines()]
    assert names == [*METHODS, "auto"]


@pytest.mark.parametrize("name", ["problem", "plan", "config"])
def test_schemas_are_json(crosspipe: Command, name: str) -> None:
    assert json.loads(crosspipe("schema", name))["additionalProperties"] is False


@pytest.mark.parametrize("name", ["problem", "plan"])
def test_schemas_say_what_every_field_means(crosspipe: Command, name: str) -> None:
    schema = json.loads(crosspipe("schema", name))
    for part in (schema, *schema["$defs"].values()):
        for field, content in part["properties"].items():
            assert content.get("description"), (part["title"], field)


def test_every_placement_can_be_made(crosspipe: Command) -> None:
    for placement in ("one_per_rank", "wave", "loop", "region_wave", "region_loop"):
        options = ["--ranks", "4", "--num-microbatches", "4", "--placement", placement]
        stages = json.loads(crosspipe("problem", *options))["stages"]
        ranks = [stage["rank"] for stage in stages]
        assert sorted(set(ranks)) == [0, 1, 2, 3]
    assert ranks == [0, 1, 0, 1, 2, 3, 2, 3]


def test_negative_latency(crosspipe: Command, problem_file: str) -> None:
    edit(problem_file, links=[{"src": 0, "dst": 1, "latency_us": -5}])
    code, message = crosspipe.fails("plan", problem_file)
    assert code == 2
    assert "p.json: links.0.latency_us" in message
    assert message.count("\n") == 1


def test_unknown_key_names_the_nearest(crosspipe: Command, problem_file: str) -> None:
    edit(problem_file, num_microbatch=3)
    code, message = crosspipe.fails("plan", problem_file)
    assert (code, "did you mean 'num_microbatches'?" in message) == (2, True)


def test_missing_file(crosspipe: Command) -> None:
    assert crosspipe.fails("plan", "nothing.json") == (
        2,
        "error: nothing.json: No such file or directory\n",
    )


def test_memory_below_one_microbatch_is_infeasible(crosspipe: Command) -> None:
    crosspipe(
        "problem", "--ranks", "4", "--num-microbatches", "6", "--memory", "0.2", "-o", "p.json"
    )
    code, message = crosspipe.fails("plan", "p.json", "--output", "plan.json")
    assert code == 3
    assert "rank 0 (us): memory_limit_bytes 3200 is 800 bytes too few" in message
    assert not Path("plan.json").exists()


def test_a_method_on_the_wrong_placement(crosspipe: Command, problem_file: str) -> None:
    code, message = crosspipe.fails("plan", problem_file, "--method", "zb-v")
    assert code == 2
    assert "zb-v needs the placement 'wave'" in message
    assert "make one with `crosspipe problem --placement wave`, or give layers" in message


def test_no_such_method(crosspipe: Command, problem_file: str) -> None:
    code, message = crosspipe.fails("plan", problem_file, "--method", "magic")
    assert (code, "'magic': no such method; there are gpipe" in message) == (2, True)


@pytest.mark.parametrize(
    ("edited", "reason"),
    [
        (lambda ops: ops[:-1], "op 0W5 is missing"),
        (lambda ops: [*ops, ops[0]], "op 0F0 (position 18): this op"),
        (lambda ops: [ops[4], *ops[:4], *ops[5:]], "op 0I0 (position 0): backward comes after"),
    ],
    ids=["missing", "twice", "order"],
)
def test_an_edited_plan_is_refused(
    crosspipe: Command, plan_file: str, edited: Edit, reason: str
) -> None:
    ranks = json.loads(Path(plan_file).read_text())["ranks"]
    edit(plan_file, ranks=[edited(ranks[0]), *ranks[1:]])
    code, message = crosspipe.fails("show", plan_file)
    assert code == 2
    assert reason in message
    assert "rank 3:" in message, "the grid is shown"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty; give each rank a row, and each op a cell"),
        ("0F0,0I0\n", "the schedule has 1 ranks, the problem 4"),
        ("0I0\n1F0\n2F0\n3F0\n", "rank 0, op 0I0 (position 0): backward comes after forward"),
        ("0F0\n1G0\n2F0\n3F0\n", "rank 1, cell 0: "),
    ],
)
def test_a_schedule_that_does_not_fit_is_named(
    crosspipe: Command, problem_file: str, content: str, reason: str
) -> None:
    Path("mine.csv").write_text(content)
    code, message = crosspipe.fails("simulate", problem_file, "--schedule", "mine.csv")
    assert (code, message.startswith(f"error: mine.csv: {reason}")) == (2, True)


def test_a_rehearsal_needs_a_good_plan_before_anything_starts(
    crosspipe: Command, plan_file: str
) -> None:
    edit(plan_file, makespan_us=1.0)
    code, message = crosspipe.fails("rehearse", plan_file)
    assert (code, "makespan_us is 1.000, but its ops take" in message) == (2, True)


def test_only_real_links_are_corrected(crosspipe: Command, plan_file: str) -> None:
    code, message = crosspipe.fails("rehearse", plan_file, "--corrected", "problem.json")
    assert (code, "rehearse with --no-emulate-links" in message) == (2, True)


def test_help_and_planning_import_neither_torch_nor_ray(problem_file: str) -> None:
    program = f"""
import sys
from crosspipe_ray.cli import main
sys.argv = ["crosspipe", "plan", "{problem_file}"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert not {{"torch", "ray", "ortools", "pyarrow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)
