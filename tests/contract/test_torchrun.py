"""The engine without Ray: ``torchrun -m crosspipe_ray.engine`` rehearses and trains."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.plan import write_plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Problem
from tests.contract.oracle import make_config, plain_pytorch, prepare_data

TIMEOUT_S = 100


def torchrun(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "crosspipe_ray.engine", str(file), *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    recipe = Recipe(num_ranks=2, num_microbatches=4, latency_ratio=1.0, output_bytes=1000)
    write_plan(plan(generate(recipe)), tmp_path / "plan.json")
    return tmp_path / "plan.json"


def make_run(folder: Path) -> tuple[Path, Path]:
    """A dataset, and the configuration of a run on it."""
    data = prepare_data(folder)
    config = make_config(data, 2).model_dump(mode="json")
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return data, folder / "run.yaml"


def test_rehearses_a_plan(plan_file: Path) -> None:
    done = torchrun(plan_file, "--steps", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["step 1", "step 2"]
    assert "| makespan " in done.stdout


def test_trains_to_the_losses_of_plain_pytorch(tmp_path: Path) -> None:
    data, run_file = make_run(tmp_path)
    done = torchrun(run_file, "--set", "cluster.emulate_links=true")
    assert done.returncode == 0, done.stderr
    losses = [line.rsplit("loss ")[1] for line in done.stdout.splitlines()]
    assert losses == [f"{fmean(step):.4f}" for step in plain_pytorch(data).losses]


def test_trains_in_pieces_to_the_same_losses_but_for_rounding(tmp_path: Path) -> None:
    data, run_file = make_run(tmp_path)
    done = torchrun(run_file, "--set", "planner.pieces=[2]")
    assert done.returncode == 0, done.stderr
    losses = [float(line.rsplit("loss ")[1]) for line in done.stdout.splitlines()]
    expected = [fmean(step) for step in plain_pytorch(data).losses]
    assert losses == pytest.approx(expected, abs=1e-3)


def test_trains_over_streams_with_the_credentials_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run_file = make_run(tmp_path)
    over_streams = ["--set", "cluster.transport=streams", "--set", "cluster.num_streams=2"]
    monkeypatch.delenv("CROSSPIPE_CREDENTIALS", raising=False)
    refused = torchrun(run_file, *over_streams)
    assert refused.returncode != 0
    assert "streams: CROSSPIPE_CREDENTIALS is not set" in refused.stderr
    credentials = tmp_path / "credentials"
    command = [sys.executable, "-m", "crosspipe_ray.engine.transports.streams", str(credentials)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    monkeypatch.setenv("CROSSPIPE_CREDENTIALS", str(credentials))
    done = torchrun(run_file, *over_streams)
    assert done.returncode == 0, done.stderr
    losses = [line.rsplit("loss ")[1] for line in done.stdout.splitlines()]
    assert losses == [f"{fmean(step):.4f}" for step in plain_pytorch(data).losses]


def test_a_method_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, run_file = make_run(tmp_path)
    chosen = ["--set", "planner.method=zb-v", "--set", "planner.placement=loop"]
    done = torchrun(run_file, *chosen)
    assert "exitcode  : 2" in done.stderr
    assert "rank 0: planner.method: zb-v needs the placement 'wave'" in done.stderr


def test_object_store_is_refused_without_ray(plan_file: Path, tmp_path: Path) -> None:
    content = json.loads(plan_file.read_text())
    for link in content["problem"]["links"]:
        link["transport"] = "object_store"
    content["problem_sha256"] = Problem.model_validate(content["problem"]).sha256
    (tmp_path / "objects.json").write_text(json.dumps(content))
    done = torchrun(tmp_path / "objects.json")
    assert done.returncode != 0
    assert "rank 0: transport object_store needs Ray" in done.stderr


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    write_plan(plan(generate(Recipe(num_ranks=4, num_microbatches=4))), tmp_path / "plan.json")
    done = torchrun(tmp_path / "plan.json")
    assert done.returncode != 0
    assert "plan.json: has 4 ranks, torchrun started 2" in done.stderr
