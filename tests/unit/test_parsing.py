from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from crosspipe_ray.errors import ConfigError
from crosspipe_ray.parsing import parse_model, read_json


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width_us: float = Field(0.0, ge=0)


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    leaves: tuple[Leaf, ...] = Field((), min_length=1)
    best: Leaf | None = None
    folder: Path | None = None

    @model_validator(mode="after")
    def _is_alive(self) -> "Tree":
        if self.name == "elm":
            raise ValueError("name: elms are dead")
        return self


def complaint(raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_model(Tree, raw, source="tree.yaml", error=ConfigError)
    return str(caught.value)


def test_right_data_becomes_the_model() -> None:
    raw = {"name": "oak", "leaves": [{"width_us": 1}]}
    tree = parse_model(Tree, raw, source="tree.yaml", error=ConfigError)
    assert tree.leaves[0].width_us == 1.0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "oak", "leafs": []}, "leafs: unknown field; did you mean 'leaves'?"),
        (
            {"name": "oak", "leaves": [{}, {"width": 1}]},
            "leaves.1.width: unknown field; did you mean 'width_us'?",
        ),
        (
            {"name": "oak", "best": {"widht_us": 1}},
            "best.widht_us: unknown field; did you mean 'width_us'?",
        ),
        ({"name": "oak", "zzz": 1}, "zzz: unknown field; known are name, leaves, best, folder"),
        ({}, "name: missing"),
        (
            {"name": "oak", "best": {"width_us": -1}},
            "best.width_us: input should be greater than or equal to 0 (got -1)",
        ),
    ],
)
def test_first_wrong_field_is_named(raw: Any, message: str) -> None:
    assert complaint(raw) == f"tree.yaml: {message}"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1], "input should have named fields"),
        ({"name": "oak", "best": 3}, "best: input should have named fields (got 3)"),
        ({"name": "oak", "leaves": 3}, "leaves: input should be a list (got 3)"),
        ({"name": "oak", "leaves": []}, "leaves: input should have a length of at least 1"),
        ({"name": "oak", "folder": 3}, "folder: input should be a path (got 3)"),
        ({"name": "elm"}, "name: elms are dead"),
    ],
)
def test_data_of_another_shape(raw: Any, message: str) -> None:
    assert complaint(raw) == f"tree.yaml: {message}"


def test_json_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"p\.json: not JSON: Expecting"):
        read_json(path, error=ConfigError)


def test_binary_file_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not JSON"):
        read_json(path, error=ConfigError)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"p\.json: No such file"):
        read_json(tmp_path / "p.json", error=ConfigError)
