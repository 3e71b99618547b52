"""Memory-mapped tokens, and from a step's number to its batch.

A dataset is a folder: ``metadata.json`` and, per split, Arrow IPC shards with the one column
``tokens``. The documents of a split follow each other, each with the tokenizer's end-of-document
token behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from crosspipe_ray.errors import InputError
from crosspipe_ray.parsing import parse_model, read_json

Split = Literal["train", "validation"]

METADATA = "metadata.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


def read_info(path: Path) -> DatasetInfo:
    """The metadata of a prepared dataset.

    Raises:
        InputError: there is no dataset.
    """
    if not (path / METADATA).is_file():
        raise InputError(
            f"{path}: no prepared dataset; "
            f"make it with `crosspipe data prepare PATH... --output {path}`"
        )
    metadata = path / METADATA
    return parse_model(
        DatasetInfo, read_json(metadata, error=InputError), source=str(metadata), error=InputError
    )


class TokenDataset:
    """One split of a dataset as samples.

    Sample i is ``tokens[i * L : i * L + L + 1]``: L inputs and, one further, L labels.

    Args:
        path: folder that :func:`~crosspipe_ray.training.prepare.prepare` made.
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
                f"{self._split_info.num_tokens} in {METADATA}; "
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


def _map_shard(path: Path) -> NDArray[np.integer]:
    """A shard's tokens as a view of the file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        tokens: NDArray[np.integer] = table.column("tokens").chunk(0).to_numpy(zero_copy_only=True)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{path}: not a shard of tokens: {' '.join(str(error).split())}") from None
    return tokens
