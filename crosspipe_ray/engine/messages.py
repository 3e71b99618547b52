"""What a message is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """What a message is made of, so that its receive can be posted before it comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the message."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> MessageSpec:
        """That of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)
