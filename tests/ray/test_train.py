"""The main job by its command: what it leaves in its folder, what it refuses, how it stops."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
import yaml
from safetensors.torch import load_file

from crosspipe_ray.config import load_config
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import write_plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.run_profile import read_run_profile
from tests.contract.oracle import make_config, make_plan, prepare_data

pytestmark = pytest.mark.ray
TIMEOUT_S = 100
FILES = {
    "config.json",
    "config.yaml",
    "metrics.jsonl",
    "model.safetensors",
    "next_profile.json",
    "plan.json",
    "profile.json",
    "summary.md",
    "timeline.svg",
    "trace.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and ``run.yaml`` for four ranks in two emulated regions."""
    folder = tmp_path_factory.mktemp("train")
    config = make_config(prepare_data(folder), 4).model_dump(mode="json")
    config["output"] = str(folder / "runs")
    config["cluster"]["emulate_links"] = True
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def address(two_regions: tuple[str, ...]) -> str:
    """Of the running cluster."""
    assert two_regions
    return str(ray.get_runtime_context().gcs_address)


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "crosspipe_ray", "train", str(folder / "run.yaml"), *options]


def train(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *options), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def runs(folder: Path) -> set[Path]:
    return set((folder / "runs").glob("*"))


def ray_processes() -> set[int]:
    """Process ids of everything that belongs to any Ray cluster of this machine."""
    found = set()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes()
        except OSError:  # it has just ended
            continue
        if b"raylet" in text or b"gcs_server" in text or b"ray::" in text:
            found.add(int(cmdline.parent.name))
    return found


def assert_gone(processes: set[int], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while left := processes & ray_processes():
        assert time.monotonic() < deadline, f"processes are left: {left}"


def test_a_run_leaves_everything_in_its_folder_and_nothing_else(folder: Path) -> None:
    before, processes = runs(folder), ray_processes()
    done = train(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert_gone(ray_processes() - processes)
    [run] = runs(folder) - before
    assert {path.name for path in run.iterdir()} == FILES
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [0, 1, 2]
    assert json.loads((run / "trace.json").read_text())["traceEvents"]
    assert read_run_profile(run / "profile.json").source == "profile"
    assert read_run_profile(run).source == "run"
    figures = ("training loss", "held-out loss", "profile", "makespan", "bubble", "1F1B would take")
    for figure in figures:
        assert figure in done.stdout
        assert figure in (run / "summary.md").read_text()


def test_a_saved_plan_or_profile_gives_the_same_weights(folder: Path, address: str) -> None:
    before = runs(folder)
    assert train(folder, "--address", address).returncode == 0
    [first] = runs(folder) - before
    weights = load_file(first / "model.safetensors")
    for options in (["--plan", str(first / "plan.json")], ["--profile", str(first)]):
        others = runs(folder)
        again = train(folder, "--address", address, *options)
        assert again.returncode == 0, again.stderr
        assert "profiling" not in again.stdout
        [second] = runs(folder) - others
        same = load_file(second / "model.safetensors")
        assert weights.keys() == same.keys()
        assert all(bool((weights[name] == same[name]).all()) for name in weights)
    # The second run was planned by what the first has left, and by nothing of its own.
    used, left = (read_run_profile(file) for file in (second / "profile.json", first))
    assert (used.source, used.problem.layers) == ("run", left.problem.layers)


def test_pieces_train_as_so_many_smaller_microbatches(folder: Path, address: str) -> None:
    before = runs(folder)
    in_two = ("--set", "planner.pieces=[2]")
    done = train(folder, "--address", address, *in_two)
    assert done.returncode == 0, done.stderr
    assert "Every microbatch went in 2 pieces" in done.stdout
    [first] = runs(folder) - before
    training = load_config(first / "config.yaml").training
    assert (training.num_microbatches, training.num_evaluation_microbatches) == (8, 4)
    smaller = ("training.num_microbatches=8", "training.num_evaluation_microbatches=4")
    weights = load_file(first / "model.safetensors")
    for options in (
        ["--set", smaller[0], "--set", smaller[1]],
        [*in_two, "--plan", str(first / "plan.json")],
        [*in_two, "--profile", str(first)],
    ):
        others = runs(folder)
        again = train(folder, "--address", address, *options)
        assert again.returncode == 0, again.stderr
        [second] = runs(folder) - others
        same = load_file(second / "model.safetensors")
        assert all(bool((weights[name] == same[name]).all()) for name in weights)


def test_a_codec_is_named_and_a_saved_plan_gives_the_same_weights(
    folder: Path, address: str
) -> None:
    before = runs(folder)
    links = "cluster.links=[{src: us, dst: eu, latency_us: 2000, codec: int8}]"
    options = ("--address", address, "--set", links)
    done = train(folder, *options)
    assert done.returncode == 0, done.stderr
    assert "int8: numerics change" in done.stdout
    [first] = runs(folder) - before
    assert "int8: numerics change" in (first / "summary.md").read_text()
    again = train(folder, *options, "--plan", str(first / "plan.json"))
    assert again.returncode == 0, again.stderr
    [second] = runs(folder) - before - {first}
    weights, same = (load_file(run / "model.safetensors") for run in (first, second))
    assert all(bool((weights[name] == same[name]).all()) for name in weights)


def test_streams_give_the_same_weights_and_leave_no_secret(folder: Path, address: str) -> None:
    before = runs(folder)
    assert train(folder, "--address", address).returncode == 0
    [first] = runs(folder) - before
    link = "{src: us, dst: eu, latency_us: 2000, transport: streams, num_streams: 2}"
    options = ["--address", address, "--set", f"cluster.links=[{link}]"]
    done = train(folder, *options)
    assert done.returncode == 0, done.stderr
    assert "us->eu streams x 2, eu->us streams x 2" in done.stdout
    assert "connecting the ranks (collective, streams x 2)" in done.stdout
    [second] = runs(folder) - before - {first}
    weights, same = (load_file(run / "model.safetensors") for run in (first, second))
    assert all(bool((weights[name] == same[name]).all()) for name in weights)
    for file in second.iterdir():
        assert b"PRIVATE KEY" not in file.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "cluster.transport=auto"], "'auto' for us->eu chooses by measured links"),
        (["--set", "model.num_layers=1"], "cluster.regions: 4 ranks need as many stages"),
        (["--set", "training.batch_size=9"], "batch_size 9 is not divisible by num_microbatches 4"),
        (["--set", "data.path=/nowhere"], "crosspipe data prepare"),
        (["--set", "model.hiden_size=8"], "did you mean 'hidden_size'?"),
        (["--set", "cluster.links=[{src: us, dst: mars}]"], "no region 'mars'"),
        (["--set", "planner.pieces=[3]"], "a microbatch of 2 sequences (training.batch_size / "),
        (["--set", "planner.method=magic"], "'magic': no such method"),
        (
            ["--set", "planner.method=zb-v", "--set", "planner.placement=loop"],
            "planner.method: zb-v needs the placement 'wave', but planner.placement",
        ),
        (
            ["--set", "model.tie_embeddings=true", "--set", "planner.placement=loop"],
            "tie_embeddings",
        ),
        (["--profile", "/nowhere"], "/nowhere: No such file"),
        (["--profile", "a", "--plan", "b"], "--profile: a plan is made from it"),
        (["--address", "127.0.0.1:1"], "nothing answers there"),
    ],
    ids=lambda value: value[-1].split("=")[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_nothing_is_started(
    folder: Path, options: Sequence[str], message: str
) -> None:
    before, processes = runs(folder), ray_processes()
    done = train(folder, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert runs(folder) == before
    assert_gone(ray_processes() - processes)


def test_a_plan_for_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plan(plan(generate(Recipe(num_ranks=4, num_microbatches=6))), file)
    before = runs(folder)
    done = train(folder, "--plan", str(file))
    assert done.returncode == 2
    assert "the plan is for another run: its num_microbatches 6, the config's 4" in done.stderr
    assert runs(folder) == before


def test_a_plan_over_another_transport_than_asked_for_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    """Nothing goes over plain TCP that was to be encrypted."""
    file = tmp_path / "plan.json"
    write_plan(make_plan(load_config(folder / "run.yaml"), "1f1b"), file)
    done = train(folder, "--plan", str(file), "--set", "cluster.transport=streams")
    assert done.returncode == 2
    expected = "the plan sends over collective from us to eu, the config asks for streams; set"
    assert expected in done.stderr


def test_a_region_without_a_node_is_refused(folder: Path, address: str) -> None:
    done = train(folder, "--address", address, "--set", "cluster.region_label=zone")
    assert done.returncode == 2
    assert "no Ray node has the label zone=us; nodes by zone: no label (2)" in done.stderr


def test_too_little_memory_names_rank_and_bytes(folder: Path, address: str) -> None:
    regions = "[{name: us, num_ranks: 2, memory_limit_bytes: 1000}, {name: eu, num_ranks: 2}]"
    before = runs(folder)
    done = train(folder, "--address", address, "--set", f"cluster.regions={regions}")
    assert done.returncode == 3
    assert "rank 0 (us): memory_limit_bytes 1000 is" in done.stderr
    assert done.stderr.count("\n") == 1
    assert runs(folder) == before


def test_ctrl_c_stops_everything_and_keeps_what_is_saved(folder: Path) -> None:
    before, processes = runs(folder), ray_processes()
    steps = ["--set", "training.num_steps=100000"]
    with subprocess.Popen(command(folder, *steps), text=True, stderr=subprocess.PIPE) as running:
        wait_for_metrics(folder, before, running)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=TIMEOUT_S)
    assert (running.returncode, errors) == (130, "stopped\n")
    assert_gone(ray_processes() - processes)
    [run] = runs(folder) - before
    assert (run / "metrics.jsonl").read_text().endswith("}\n")


def has_metrics(run: Path) -> bool:
    file = run / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0


def wait_for_metrics(folder: Path, before: set[Path], running: "subprocess.Popen[str]") -> None:
    """Until the run has saved a few steps."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(has_metrics(run) for run in runs(folder) - before):
        assert running.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, "the run does not get going"
