"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crosspipe_ray.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a crash, never sees a part of it.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    with new_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def json_text(content: object) -> str:
    """What a JSON file holds that people may read."""
    return json.dumps(content, indent=1) + "\n"


def check_folders(*paths: Path | None) -> None:
    """Refuses, before the work whose result goes there, files that cannot be made.

    Args:
        paths: files to be written; None: not asked for.

    Raises:
        InputError: the folder does not exist, or it is itself what was named.
    """
    for path in filter(None, paths):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write into, which takes the name of ``path`` once all went well.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot write into {path.parent}: {error.strerror}") from None
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
