"""A decoder of the Llama family, cut at any pipeline layer.

Pipeline layers are ``[embedding, block 0, ..., block n - 1, norm and head]``. Parameter names are
those of Hugging Face's ``LlamaForCausalLM`` in every part, and a weight's first value depends on
nothing but the seed and that name. So a model has the same weights however it is cut, and its saved
parts are one Llama checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from crosspipe_ray.config import ModelConfig
from crosspipe_ray.errors import ConfigError

_INIT_STD = 0.02
_RESIDUAL_PROJECTIONS = ("o_proj.weight", "down_proj.weight")


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.head_size = hidden // config.num_heads
        self.rope_theta = config.rope_theta
        kv_size = config.num_kv_heads * self.head_size
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[microbatch, sequence, hidden] to the same shape."""
        cos, sin = _rotary_table(
            hidden.shape[1], self.head_size, self.rope_theta, hidden.dtype, hidden.device
        )
        query = _rotate(self._heads(self.q_proj(hidden)), cos, sin)
        key = _rotate(self._heads(self.k_proj(hidden)), cos, sin)
        value = self._heads(self.v_proj(hidden))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).flatten(2)))

    def _heads(self, projected: Tensor) -> Tensor:
        """[microbatch, sequence, heads * head_size] -> [microbatch, heads, sequence, head_size]."""
        batch, length, size = projected.shape
        return projected.view(batch, length, size // self.head_size, self.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[microbatch, sequence, hidden] to the same shape."""
        return cast(
            Tensor, self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        )


class Block(nn.Module):
    """One decoder layer: attention, then feed-forward, each behind a norm, added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """[microbatch, sequence, hidden] to the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden))
        return cast(Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden)))


class _Body(nn.Module):
    """What Hugging Face keeps under the prefix ``model``; parts that live elsewhere are None."""

    def __init__(self, config: ModelConfig, first: int, end: int, vocab_size: int) -> None:
        super().__init__()
        blocks = range(max(first, 1) - 1, min(end - 1, config.num_layers))
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size) if first == 0 else None
        self.layers = nn.ModuleDict({str(index): Block(config) for index in blocks})
        has_head = end == config.num_pipeline_layers
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps) if has_head else None


class DecoderPart(nn.Module):
    """Pipeline layers ``[first, end)`` of a decoder; made by :func:`build_layers`."""

    def __init__(self, config: ModelConfig, first: int, end: int) -> None:
        super().__init__()
        vocab_size = required_vocab_size(config)
        has_head = end == config.num_pipeline_layers
        self.model = _Body(config, first, end, vocab_size)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size, bias=False) if has_head else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Token ids or activations in, activations or logits out."""
        hidden = inputs if self.model.embed_tokens is None else self.model.embed_tokens(inputs)
        for block in self.model.layers.values():
            hidden = block(hidden)
        if self.lm_head is None or self.model.norm is None:
            return cast(Tensor, hidden)
        return cast(Tensor, self.lm_head(self.model.norm(hidden)))


def build_layers(
    config: ModelConfig,
    first: int,
    end: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DecoderPart:
    """Makes pipeline layers ``[first, end)`` with their first weights.

    Matrices are normal with standard deviation 0.02; the two projections of a block that add to the
    residual stream are scaled by 1 / sqrt(2 num_layers) (GPT-2). Norms are ones.

    Args:
        config: the whole model.
        first: first pipeline layer, 0 being the embedding.
        end: one past the last; ``config.num_pipeline_layers`` includes norm and head.
        seed: with a parameter's name, all that its values depend on.
        dtype: of weights and activations.
        device: where they live; values are drawn on the CPU, so they are the same everywhere.

    Raises:
        ConfigError: ``vocab_size`` is not filled in.
    """
    if not 0 <= first < end <= config.num_pipeline_layers:
        raise ValueError(f"layers [{first}, {end}) of {config.num_pipeline_layers}")
    with torch.device("meta"):
        part = DecoderPart(config, first, end).to(dtype)
    part.to_empty(device=device)
    for name, parameter in part.named_parameters():
        _initialise(name, parameter, seed=seed, num_layers=config.num_layers)
    return part


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over a microbatch's tokens, in float32.

    Args:
        logits: [microbatch, sequence, vocabulary].
        labels: [microbatch, sequence], the token that follows each position.
    """
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def activation_shape(
    config: ModelConfig, *, microbatch_size: int, sequence_length: int
) -> tuple[int, int, int]:
    """Shape of what passes between two stages, and of its gradient."""
    return microbatch_size, sequence_length, config.hidden_size


def hf_config(config: ModelConfig, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
    """The ``config.json`` that lets transformers load the saved weights as ``LlamaForCausalLM``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": required_vocab_size(config),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def required_vocab_size(config: ModelConfig) -> int:
    """The vocabulary size, once the tokenizer has filled it in.

    Raises:
        ConfigError: it has not.
    """
    if config.vocab_size is None:
        raise ConfigError("model.vocab_size: missing, and no tokenizer has filled it in")
    return config.vocab_size


def _initialise(name: str, parameter: nn.Parameter, *, seed: int, num_layers: int) -> None:
    if parameter.ndim < 2:
        nn.init.ones_(parameter)
        return
    std = (
        _INIT_STD / math.sqrt(2 * num_layers) if name.endswith(_RESIDUAL_PROJECTIONS) else _INIT_STD
    )
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(parameter.shape).normal_(std=std, generator=generator)
    with torch.no_grad():
        parameter.copy_(values)


@lru_cache(maxsize=16)
def _rotary_table(
    length: int, head_size: int, theta: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions, [sequence, head_size / 2] (RoFormer, section 3.4.2)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    angles = torch.outer(torch.arange(length, dtype=torch.float32), theta**-exponents)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + head_size / 2), Llama's order, by its position's angle."""
    left, right = heads.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
