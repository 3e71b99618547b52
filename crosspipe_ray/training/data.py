"""From text files to memory-mapped tokens, and from a step's number to its batch.

A dataset is a folder: ``metadata.json`` and, per split, Arrow IPC shards with the one column
``tokens``. The documents of a split follow each other, each with the tokenizer's end-of-document
token behind it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from crosspipe_ray.errors import InputError
from crosspipe_ray.parsing import parse_model, read_json
from crosspipe_ray.training.tokens import Tokenizer

Split = Literal["train", "validation"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
SKIPPED_FOLDERS = ("__pycache__", "site-packages", "node_modules")
_METADATA = "metadata.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class _Document:
    path: Path
    digest: bytes


class SplitInfo(_Record):
    """One split: its size, and the SHA-256 of its tokens as they lie in the shards."""

    num_documents: int
    num_tokens: int
    sha256: str


class DatasetInfo(_Record):
    """``metadata.json`` of a dataset.

    Attributes:
        num_skipped_files: files that were empty or no UTF-8.
        unigram_entropy_nats: entropy of the training split's token frequencies, in nats per token:
            the loss of the best model that ignores context.
    """

    version: Literal[1] = 1
    tokenizer: str
    vocab_size: int
    num_skipped_files: int
    unigram_entropy_nats: float
    train: SplitInfo
    validation: SplitInfo


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
        (partial / _METADATA).write_text(info.model_dump_json(indent=2) + "\n")
        partial.rename(output)
    except OSError as error:
        raise InputError(f"{error.filename or output}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return info


def read_info(path: Path) -> DatasetInfo:
    """The metadata of a prepared dataset.

    Raises:
        InputError: there is no dataset.
    """
    if not (path / _METADATA).is_file():
        raise InputError(
            f"{path}: no prepared dataset; "
            f"make it with `crosspipe data prepare PATH... --output {path}`"
        )
    metadata = path / _METADATA
    return parse_model(
        DatasetInfo, read_json(metadata, error=InputError), source=str(metadata), error=InputError
    )


class TokenDataset:
    """One split of a dataset as samples.

    Sample i is ``tokens[i * L : i * L + L + 1]``: L inputs and, one further, L labels.

    Args:
        path: folder that :func:`prepare` made.
        split: ``train`` or ``validation``.
        sequence_length: L, tokens per sample.

    Raises:
        InputError: there is no dataset, or its files do not belong together.
    """

    def __init__(self, path: Path, *, split: Split = "train", sequence_length: int) -> None:
        self.path = path
        self.split = split
        self.sequence_length = sequence_length
        self.info = read_info(path)
        self._shards = [_map_shard(shard) for shard in sorted(path.glob(f"{split}-*.arrow"))]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        num_tokens = sum(map(len, self._shards))
        if num_tokens != self._split_info.num_tokens:
            raise InputError(
                f"{path}: {num_tokens} {split} tokens in its shards, but "
                f"{self._split_info.num_tokens} in {_METADATA}; "
                f"make it again with `crosspipe data prepare PATH... --output {path}`"
            )

    def __len__(self) -> int:
        return max(self._split_info.num_tokens - 1, 0) // self.sequence_length

    @property
    def digest(self) -> str:
        """SHA-256 of the split's tokens: two readers of equal digest read the same samples."""
        return self._split_info.sha256

    def tokens(self, start: int, end: int) -> NDArray[np.integer]:
        """Tokens [start, end) of the split; a view of the file where one shard has them all."""
        first, last = np.searchsorted(self._ends, [start, end - 1], side="right")
        pieces = []
        for index in range(first, last + 1):
            offset = int(self._ends[index]) - len(self._shards[index])
            pieces.append(self._shards[index][max(start - offset, 0) : end - offset])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def batches(
        self,
        *,
        batch_size: int,
        num_microbatches: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> Batches:
        """The split in a shuffled order, a batch per step.

        Raises:
            InputError: the split has too few tokens for one batch.
        """
        if len(self) < batch_size:
            needed = batch_size * self.sequence_length + 1
            raise InputError(
                f"{self.path}: {self._split_info.num_tokens} {self.split} tokens, but one batch "
                f"of {batch_size} x {self.sequence_length} takes {needed}; "
                "give more text or a smaller batch"
            )
        return Batches(self, batch_size, num_microbatches, seed, torch.device(device))

    @property
    def _split_info(self) -> SplitInfo:
        return self.info.train if self.split == "train" else self.info.validation


@dataclass(frozen=True, slots=True)
class Batches:
    """What each microbatch of each step reads, from (seed, step, microbatch) alone.

    Every epoch is a permutation of the samples, drawn from (seed, epoch). Inputs and labels are
    read apart: the first stage needs only the ones, the last only the others.
    """

    dataset: TokenDataset
    batch_size: int
    num_microbatches: int
    seed: int
    device: torch.device

    def inputs(self, step: int, microbatch: int) -> torch.Tensor:
        """Token ids [microbatch, sequence], int64."""
        return self._read(step, microbatch, shift=0)

    def labels(self, step: int, microbatch: int) -> torch.Tensor:
        """The token that follows each input, [microbatch, sequence], int64."""
        return self._read(step, microbatch, shift=1)

    def _read(self, step: int, microbatch: int, *, shift: int) -> torch.Tensor:
        size, length = self.batch_size // self.num_microbatches, self.dataset.sequence_length
        first = step * self.batch_size + microbatch * size
        rows = np.empty((size, length), dtype=np.int64)
        for row, position in enumerate(range(first, first + size)):
            start = self._sample(position) * length + shift
            rows[row] = self.dataset.tokens(start, start + length)
        return torch.from_numpy(rows).to(self.device)

    def _sample(self, position: int) -> int:
        epoch, index = divmod(position, len(self.dataset))
        return int(_permutation(self.seed, epoch, len(self.dataset))[index])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.intp]:
    """Order of an epoch; from raw bits, which numpy, unlike shuffles, keeps over its versions."""
    keys = np.random.PCG64([seed, epoch]).random_raw(num_samples)
    return np.argsort(keys, kind="stable")


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


def _map_shard(path: Path) -> NDArray[np.integer]:
    """A shard's tokens as a view of the file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        tokens: NDArray[np.integer] = table.column("tokens").chunk(0).to_numpy(zero_copy_only=True)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path}: not a shard of tokens: {' '.join(str(error).split())}") from None
    return tokens
