"""Tokenizers: text to numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crosspipe_ray.errors import InputError

_END_OF_DOCUMENT_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eot_id|>",
    "<|im_end|>",
)


class Tokenizer(Protocol):
    """Text to token ids.

    Attributes:
        name: what to write down to find it again: ``bytes``, or the file.
        vocab_size: ids are below it.
        end_of_document: the id that is put behind every document.
    """

    name: str
    vocab_size: int
    end_of_document: int

    def encode(self, text: str) -> NDArray[np.integer]:
        """Token ids of one document, without the end."""


class ByteTokenizer:
    """One token per UTF-8 byte, and one more for the end of a document.

    >>> ByteTokenizer().encode("hi").tolist()
    [104, 105]
    """

    name = "bytes"
    vocab_size = 257
    end_of_document = 256

    def encode(self, text: str) -> NDArray[np.integer]:
        """The text's UTF-8 bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8)


class FileTokenizer:
    """A Hugging Face ``tokenizer.json``.

    Raises:
        InputError: the file is missing or no tokenizer, the package ``tokenizers`` is not
            installed, or the vocabulary has no token for the end of a document.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer as HuggingFaceTokenizer
        except ImportError:
            raise InputError(
                f"tokenizer {path}: the package tokenizers is not installed; pip install tokenizers"
            ) from None
        if not path.is_file():
            raise InputError(f"tokenizer {path}: no such file; give 'bytes' or a tokenizer.json")
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the package raises plain Exception
            raise InputError(f"tokenizer {path}: {' '.join(str(error).split())}") from None
        self.name = str(path)
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1  # ids may have gaps
        ids = [self._tokenizer.token_to_id(name) for name in _END_OF_DOCUMENT_NAMES]
        known = [token for token in ids if token is not None]
        if not known:
            raise InputError(
                f"tokenizer {path}: no end-of-document token; "
                f"it needs one of {', '.join(_END_OF_DOCUMENT_NAMES)}"
            )
        self.end_of_document: int = known[0]

    def encode(self, text: str) -> NDArray[np.integer]:
        """Token ids, without the special tokens that a template would add."""
        return np.asarray(
            self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32
        )


def load_tokenizer(name: str) -> Tokenizer:
    """``bytes``, or the path of a ``tokenizer.json``.

    Raises:
        InputError: there is no such tokenizer.
    """
    return ByteTokenizer() if name == ByteTokenizer.name else FileTokenizer(Path(name))
