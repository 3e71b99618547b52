"""Which device a rank computes on."""

from __future__ import annotations

import torch


def rank_device(local_rank: int = 0) -> torch.device:
    """A GPU of this process where it sees any, in turn by local rank; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
