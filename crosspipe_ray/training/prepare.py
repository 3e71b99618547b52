"""From text files to memory-mapped tokens."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crosspipe_ray.errors import InputError
from crosspipe_ray.training.data import METADATA, DatasetInfo, Split, SplitInfo
from crosspipe_ray.training.tokens import Tokenizer

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
SKIPPED_FOLDERS = ("__pycache__", "site-packages", "node_modules")


@dataclass(frozen=True, slots=True)
class _Document:
    path: Path
    digest: bytes


def prepare(
    paths: Sequence[Path],
    output: Path,
    *,
    tokenizer: Tokenizer,
    validation_fraction: float = 0.05,
    suffixes: Sequence[str] = TEXT_SUFFIXES,
    skipped_folders: Sequence[str] = SKIPPED_FOLDERS,
    tokens_per_shard: int = 1 << 26,
) -> DatasetInfo:
    """Turns text files into a dataset.

    Held out are the documents with the smallest hashes, so the split does not depend on where files
    lie, and equal documents stay together. Of a single document the end is held out.

    Args:
        paths: files, and folders that are searched for the suffixes (not in hidden or skipped
            folders).
        output: folder to make; it appears when it is complete, and not at all on an error.
        tokenizer: text to tokens.
        validation_fraction: share of the documents that is held out, in [0, 1).
        suffixes: of the files to take from folders.
        skipped_folders: names of folders not to enter.
        tokens_per_shard: a shard ends with the document that reaches it.

    Raises:
        InputError: no such path, no text in it, the output exists, or the fraction is out of range.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction: {validation_fraction} is not in [0, 1)")
    if output.exists():
        raise InputError(f"{output}: exists already; remove it, or choose another --output")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        documents, num_skipped = _scan(_find_files(paths, suffixes, frozenset(skipped_folders)))
        if not documents:
            raise InputError(
                f"{', '.join(map(str, paths))}: no text found ({num_skipped} files are empty or "
                f"not UTF-8); folders are searched for {' '.join(suffixes)}"
            )
        partial.mkdir(parents=True)
        writers = _write_splits(
            documents, partial, tokenizer, validation_fraction, tokens_per_shard
        )
        info = _describe(tokenizer, writers, num_skipped)
        (partial / METADATA).write_text(info.model_dump_json(indent=2) + "\n")
        partial.rename(output)
    except OSError as error:
        raise InputError(f"{error.filename or output}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info


def _find_files(
    paths: Sequence[Path], suffixes: Sequence[str], skipped_folders: frozenset[str]
) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if path.is_file():
            yield path
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(
                name for name in folders if name not in skipped_folders and not name.startswith(".")
            )
            yield from (
                Path(folder, name) for name in sorted(names) if name.endswith(tuple(suffixes))
            )


def _scan(files: Iterator[Path]) -> tuple[list[_Document], int]:
    """The files that are text, and how many are not."""
    documents, num_skipped = [], 0
    for path in files:
        content = path.read_bytes()
        if content.strip() and _is_utf8(content):
            documents.append(_Document(path, hashlib.sha256(content).digest()))
        else:
            num_skipped += 1
    return documents, num_skipped


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _write_splits(
    documents: list[_Document],
    folder: Path,
    tokenizer: Tokenizer,
    fraction: float,
    tokens_per_shard: int,
) -> dict[Split, _SplitWriter]:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    splits: tuple[Split, Split] = ("train", "validation")
    writers = {
        split: _SplitWriter(folder, split, dtype, tokenizer.vocab_size, tokens_per_shard)
        for split in splits
    }
    held_out = _held_out(documents, fraction)
    for document in documents:
        encoded = tokenizer.encode(document.path.read_bytes().decode())
        tokens = np.append(encoded, tokenizer.end_of_document).astype(dtype)
        if len(documents) == 1:
            cut = len(tokens) - int(len(tokens) * fraction)
            writers["train"].add(tokens[:cut])
            writers["validation"].add(tokens[cut:])
        else:
            writers["validation" if document.digest in held_out else "train"].add(tokens)
    for writer in writers.values():
        writer.flush()
    return writers


def _held_out(documents: list[_Document], fraction: float) -> set[bytes]:
    """Hashes of the validation documents: a share of all, at least one if any, never all."""
    digests = sorted({document.digest for document in documents})
    wanted = max(round(fraction * len(digests)), 1) if fraction else 0
    return set(digests[: min(wanted, len(digests) - 1)])


def _describe(
    tokenizer: Tokenizer, writers: dict[Split, _SplitWriter], num_skipped: int
) -> DatasetInfo:
    counts = writers["train"].token_counts
    shares = counts[counts > 0] / counts.sum()
    return DatasetInfo(
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        num_skipped_files=num_skipped,
        unigram_entropy_nats=float(-(shares * np.log(shares)).sum()),
        train=writers["train"].info,
        validation=writers["validation"].info,
    )


class _SplitWriter:
    """Writes one split's documents into shards and counts what it writes."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        dtype: np.dtype[Any],
        vocab_size: int,
        tokens_per_shard: int,
    ) -> None:
        self.token_counts = np.zeros(vocab_size, dtype=np.int64)
        self._folder = folder
        self._split = split
        self._schema = pa.schema([("tokens", pa.from_numpy_dtype(dtype))])
        self._tokens_per_shard = tokens_per_shard
        self._pending: list[NDArray[np.integer]] = []
        self._num_pending = 0
        self._num_shards = 0
        self._num_documents = 0
        self._sha256 = hashlib.sha256()

    def add(self, tokens: NDArray[np.integer]) -> None:
        """One document, or a part of one."""
        if not len(tokens):
            return
        self._pending.append(tokens)
        self._num_pending += len(tokens)
        self._num_documents += 1
        if self._num_pending >= self._tokens_per_shard:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as one shard."""
        if not self._num_pending:
            return
        tokens = np.concatenate(self._pending)
        path = self._folder / f"{self._split}-{self._num_shards:05}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            writer.write_batch(pa.record_batch([pa.array(tokens)], schema=self._schema))
        self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))
        self._sha256.update(tokens.data)
        self._num_shards += 1
        self._pending, self._num_pending = [], 0

    @property
    def info(self) -> SplitInfo:
        """What has been written."""
        return SplitInfo(
            num_documents=self._num_documents,
            num_tokens=int(self.token_counts.sum()),
            sha256=self._sha256.hexdigest(),
        )
