import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from crosspipe_ray.carriers import Carrier, Wish
from crosspipe_ray.config import Config, dump_config, load_config
from crosspipe_ray.errors import ConfigError


def config_data() -> dict[str, Any]:
    return {
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 4,
            "num_heads": 4,
            "num_kv_heads": 2,
        },
        "data": {"path": "tokens", "sequence_length": 16},
        "training": {"num_steps": 10, "batch_size": 8, "num_microbatches": 4},
        "cluster": {
            "regions": [{"name": "us", "num_ranks": 2}, {"name": "eu", "num_ranks": 1}],
            "links": [{"src": "us", "dst": "eu", "latency_us": 30000}],
        },
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_data()))
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides)
    return str(caught.value)


def test_ranks_are_in_the_order_of_regions(path: Path) -> None:
    assert load_config(path).cluster.rank_regions == ("us", "us", "eu")


def test_derived_sizes(path: Path) -> None:
    config = load_config(path)
    assert config.training.microbatch_size == 2
    assert config.model.num_pipeline_layers == 6


def test_a_codec_that_saves_nothing_is_refused(path: Path) -> None:
    links = "cluster.links=[{src: us, dst: eu, codec: bf16}]"
    message = complaint(path, links, "training.dtype=bfloat16")
    assert "cluster.links.0.codec: bf16 saves nothing" in message
    assert load_config(path, overrides=[links]).cluster.links[0].codec == "bf16"


def test_links_may_differ_from_the_cluster_in_transport_and_streams(path: Path) -> None:
    links = [{"src": "us", "dst": "eu", "both_ways": False, "transport": "streams"}]
    cluster = load_config(
        path, overrides=["cluster.num_streams=4", f"cluster.links={json.dumps(links)}"]
    ).cluster
    assert cluster.wish("us", "eu") == Wish("streams", 4)
    assert cluster.wish("eu", "us") == Wish("collective", 4)
    assert cluster.wish("us", "us") == Wish("collective", 4)
    assert cluster.wish("us", "eu").unmeasured == Carrier("streams", 4)
    assert cluster.wish("eu", "us").unmeasured == Carrier()


def test_a_link_within_a_region_has_one_direction(path: Path) -> None:
    link = "cluster.links=[{src: us, dst: us, transport: streams}]"
    cluster = load_config(path, overrides=[link]).cluster
    assert cluster.wish("us", "us") == Wish("streams")
    assert cluster.links[0].directions == (("us", "us"),)


def test_dump_reads_back(path: Path) -> None:
    config = load_config(path)
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


def test_overrides_are_read_as_yaml(path: Path) -> None:
    config = load_config(
        path,
        overrides=[
            "training.num_steps=3",
            "planner.method=1f1b",
            "training.gradient_clip_norm=null",
        ],
    )
    assert config.training.num_steps == 3
    assert config.planner.method == "1f1b"
    assert config.training.gradient_clip_norm is None


def test_override_without_a_value(path: Path) -> None:
    assert complaint(path, "training.num_steps").startswith("--set training.num_steps: expected")


def test_override_below_a_plain_value(path: Path) -> None:
    message = complaint(path, "training.num_steps.x=1")
    assert message == "--set training.num_steps.x=1: 'training.num_steps' is no section"


def test_override_that_is_no_yaml(path: Path) -> None:
    assert complaint(path, "training.num_steps=[").startswith(
        "--set training.num_steps=[: not YAML"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_microbatch=2", "training.num_microbatch: unknown field; did you mean"),
        (
            "cluster.regions=[{name: us, num_rank: 2}]",
            "cluster.regions.0.num_rank: unknown field; did you mean 'num_ranks'?",
        ),
        ("training.batch_size=9", "batch_size 9 is not divisible by num_microbatches 4"),
        ("planner.pieces=[1, 3]", "a microbatch of 2 sequences (training.batch_size / num_mic"),
        ("planner.pieces=[0]", "planner.pieces.0: input should be greater than 0"),
        ("planner.seed=2147483648", "planner.seed: input should be less than or equal to 21474"),
        ("planner.seed=-1", "planner.seed: input should be greater than or equal to 0 (got -1)"),
        ("seed=-1", "seed: input should be greater than or equal to 0 (got -1)"),
        ("planner.pieces=[]", "planner.pieces: input should have a length of at least 1"),
        ("cluster.links=[{src: us, dst: mars}]", "link us->mars: no region 'mars'; there are"),
        (
            "cluster.links=[{src: us, dst: eu, latency_us: -1}]",
            "cluster.links.0.latency_us: input should be greater than or equal to 0 (got -1)",
        ),
        ("cluster.regions=[{name: us, num_ranks: 1}, {name: us, num_ranks: 1}]", "must differ"),
        ("model.num_kv_heads=3", "num_heads must be a multiple of num_kv_heads"),
        ("model.hidden_size=34", "hidden_size must be num_heads times an even head size"),
        ("cluster.transport=pigeons", "cluster.transport: input should be 'auto', 'collective',"),
        ("cluster.num_streams=65", "cluster.num_streams: input should be less than or equal to 64"),
        (
            "cluster.links=[{src: us, dst: eu, num_stream: 2}]",
            "cluster.links.0.num_stream: unknown field; did you mean 'num_streams'?",
        ),
        (
            "cluster.links=[{src: us, dst: eu, transport: object_store, num_streams: 4}]",
            "cluster.links.0: num_streams 4: only with transport 'streams' or 'auto'",
        ),
        (
            "cluster.links=[{src: us, dst: eu}, {src: eu, dst: us, codec: int8}]",
            "cluster: links: us->eu is given twice; a link is both ways unless it says both_ways",
        ),
        (
            "cluster.streams_port=65535",
            "cluster: streams_port 65535: 3 ranks take the ports from there on, so at most 65533",
        ),
        ("planner.time_limit_s=.inf", "planner.time_limit_s: input should be a finite number"),
    ],
)
def test_wrong_field_is_named(path: Path, override: str, message: str) -> None:
    assert message in complaint(path, override)


def test_missing_section(path: Path) -> None:
    data = config_data()
    del data["data"]
    path.write_text(yaml.safe_dump(data))
    assert complaint(path) == f"{path}: data: missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("- 1", "expected a mapping"), ("", "expected a mapping")],
)
def test_file_that_is_no_configuration(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    assert message in complaint(path)


def test_binary_file_is_no_yaml(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    assert "not YAML" in complaint(path)


def test_no_file(tmp_path: Path) -> None:
    assert "No such file" in complaint(tmp_path / "run.yaml")
