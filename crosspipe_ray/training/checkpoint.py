"""Weights as one safetensors file, one entry per parameter name, whatever the placement was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from crosspipe_ray.config import ModelConfig
from crosspipe_ray.files import write_atomically
from crosspipe_ray.training.model import hf_config


def save_model(weights: Mapping[str, torch.Tensor], config: ModelConfig, folder: Path) -> None:
    """Writes ``model.safetensors`` and the ``config.json`` with which transformers loads it."""
    write_atomically(folder / "config.json", json.dumps(hf_config(config), indent=2) + "\n")
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_atomically(folder / "model.safetensors", save(contiguous, metadata={"format": "pt"}))
