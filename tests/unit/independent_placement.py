"""What a plan makes of a problem with layers, checked from the description of the format alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import isclose

from tests.unit.independent_validator import Json, input_gradient_bytes, output_bytes

_CHOSEN = {"layers", "num_stages_per_rank", "stages"}
_SUMMED = (
    "forward_us", "backward_input_us", "backward_weight_us", "activation_bytes",
    "freed_by_backward_input_bytes", "weight_bytes", "optimizer_bytes",
)  # fmt: skip


def placement_violations(placed: Json, asked: Json) -> list[str]:
    """What is wrong with a plan's problem, where one with layers was asked for."""
    checks = (_keeps_the_rest, _uses_all_ranks, _holds_all_layers, _sums, _sends)
    return [wrong for check in checks for wrong in check(placed, asked)]


def _keeps_the_rest(placed: Json, asked: Json) -> Iterator[str]:
    for field in (set(placed) | set(asked)) - _CHOSEN:
        if placed.get(field) != asked.get(field):
            yield f"{field} is not what was asked for"


def _uses_all_ranks(placed: Json, asked: Json) -> Iterator[str]:
    """As often as it was asked for."""
    held = Counter(stage["rank"] for stage in placed["stages"])
    wanted = asked.get("num_stages_per_rank")
    for rank in range(len(placed["ranks"])):
        if not held[rank] or wanted not in (None, held[rank]):
            yield f"rank {rank} holds {held[rank]} stages"


def _holds_all_layers(placed: Json, asked: Json) -> Iterator[str]:
    """In model order, each once."""
    cuts = [stage["layers"] for stage in placed["stages"]]
    held = [layer for first, end in cuts for layer in range(first, end)]
    if held != list(range(len(asked["layers"]))) or any(first >= end for first, end in cuts):
        yield f"layers are cut into {cuts}"


def _sums(placed: Json, asked: Json) -> Iterator[str]:
    """A stage costs what its layers cost together."""
    for number, stage in enumerate(placed["stages"]):
        for field in _SUMMED:
            total = sum(layer.get(field, 0) for layer in asked["layers"][slice(*stage["layers"])])
            if not isclose(stage.get(field, 0), total):
                yield f"stage {number}: {field} is not {total}"


def _sends(placed: Json, asked: Json) -> Iterator[str]:
    """What crosses a border of stages is what crosses that border of layers."""
    stages, layers = placed["stages"], asked["layers"]
    for number, (first, end) in enumerate(stage["layers"] for stage in stages):
        if output_bytes(stages, number) != output_bytes(layers, end - 1):
            yield f"stage {number}: output_bytes are not those of its last layer"
        if number and input_gradient_bytes(stages, number) != input_gradient_bytes(layers, first):
            yield f"stage {number}: input_gradient_bytes are not those of its first layer"
