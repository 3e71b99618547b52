"""From outside data to a pydantic model, or one line: what is wrong, and what would be right."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from crosspipe_ray.errors import InputError

Model = TypeVar("Model", bound=BaseModel)
# What pydantic says in the words of Python, by the type of its error.
_WORDS = {
    "model_type": "input should have named fields",
    "dict_type": "input should have named fields",
    "tuple_type": "input should be a list",
    "path_type": "input should be a path",
    "too_short": "input should have a length of at least {min_length}",
}


def parse_model(model: type[Model], raw: object, *, source: str, error: type[InputError]) -> Model:
    """Validates outside data against a model.

    Args:
        model: the pydantic model.
        raw: parsed JSON or YAML.
        source: what to call the data in the message, as a file name.
        error: the type to raise.

    Raises:
        InputError: of the given type; one line with the first wrong field.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as failure:
        raise error(f"{source}: {first_problem(failure, model)}") from None


def read_json(path: Path, *, error: type[InputError]) -> Any:
    """Reads a JSON file, or raises ``error`` with one line that names it."""
    try:
        text = path.read_text()
    except OSError as failure:
        raise error(f"{path}: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not JSON: no text in UTF-8") from None
    return parse_json(text, source=str(path), error=error)


def parse_json(text: str, *, source: str, error: type[InputError]) -> Any:
    """Reads JSON, or raises ``error`` with one line that names the source."""
    try:
        return json.loads(text)
    except ValueError as failure:
        raise error(f"{source}: not JSON: {failure}") from None


def read_yaml(path: Path, *, error: type[InputError]) -> Any:
    """Reads a YAML file, or raises ``error`` with one line that names it."""
    try:
        text = path.read_bytes()
    except OSError as failure:
        raise error(f"{path}: {failure.strerror}") from None
    return parse_yaml(text, source=str(path), error=error)


def parse_yaml(text: str | bytes, *, source: str, error: type[InputError]) -> Any:
    """Reads YAML, or raises ``error`` with one line that names the source."""
    import yaml  # here, as planning starts sooner without it

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise error(f"{source}: not YAML: {' '.join(str(failure).split())}") from None


def first_problem(failure: ValidationError, model: type[BaseModel]) -> str:
    """One line with the first wrong field of a model, and what would be right."""
    errors = failure.errors(include_url=False)
    # A misspelt field is both unknown and missing; its nearest name says more.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = first["loc"]
    where = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown field{_nearest(str(location[-1]), _siblings(model, location))}"
    if first["type"] == "missing":
        return f"{where}: missing"
    words = _WORDS.get(first["type"], "").format(**first.get("ctx", {}))
    message = words or first["msg"].removeprefix("Value error, ")
    shown = first.get("input")
    brief = f" (got {shown!r})" if isinstance(shown, str | int | float | bool) else ""
    prefix = f"{where}: " if where else ""  # what a whole file breaks names its fields itself
    return f"{prefix}{message[:1].lower()}{message[1:]}{brief}"


def _nearest(wrong: str, known: Mapping[str, object]) -> str:
    match = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known are {', '.join(known)}"


def _siblings(model: type[BaseModel], location: tuple[int | str, ...]) -> Mapping[str, object]:
    """The fields of the model in which the wrong key stands, found along the schema."""
    fields: Mapping[str, Any] = model.model_fields
    for part in location[:-1]:
        if isinstance(part, str) and part in fields:
            fields = _nested_fields(fields[part].annotation)
    return fields


def _nested_fields(annotation: object) -> Mapping[str, Any]:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    while candidates:
        candidate = candidates.pop(0)
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate.model_fields
        candidates += getattr(candidate, "__args__", ())
    return {}
