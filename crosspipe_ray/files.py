"""Files that are there whole or not at all."""

from __future__ import annotations

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


def check_folders(*paths: Path | None) -> None:
    """Refuses, before the work whose result goes there, files whose folder does not exist.

    Args:
        paths: files to be written; None: not asked for.

    Raises:
        InputError: names the file and the folder.
    """
    for path in paths:
        if path is not None and not path.parent.is_dir():
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
    except BaseException:
        part.unlink(missing_ok=True)
        raise
