from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crosspipe_ray.config import ModelConfig
from crosspipe_ray.engine.stage import tie
from crosspipe_ray.errors import ConfigError
from crosspipe_ray.training.model import (
    DecoderPart,
    activation_shape,
    build_layers,
    hf_config,
    next_token_loss,
)

CONFIG = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=5_000.0,
)
TOKENS = torch.arange(2 * 24).reshape(2, 24) * 31 % 97


def whole(config: ModelConfig, *, seed: int = 0) -> DecoderPart:
    return build_layers(config, 0, config.num_pipeline_layers, seed=seed)


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_saved_parts_load_in_transformers_and_give_the_same_logits(
    tmp_path: Path, num_kv_heads: int, tie_embeddings: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIG.model_copy(
        update={"num_kv_heads": num_kv_heads, "tie_embeddings": tie_embeddings}
    )
    ours = whole(config)
    for parameter in ours.parameters():  # norms that are not all ones, larger matrices
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(7)
        )
    if tie_embeddings:
        tie(ours, ours)
    save_file(dict(ours.named_parameters()), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))

    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()

    assert dict(theirs.named_parameters()).keys() == dict(ours.named_parameters()).keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cuts", [[0, 5], [0, 1, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_weights_and_logits_do_not_depend_on_the_cut(cuts: list[int]) -> None:
    expected = whole(CONFIG)
    parts = [build_layers(CONFIG, first, end, seed=0) for first, end in pairwise(cuts)]

    states = [part.state_dict() for part in parts]
    assert [name for state in states for name in state] == list(expected.state_dict())
    for state in states:
        for name, value in state.items():
            assert torch.equal(value, expected.state_dict()[name])
    flowing = TOKENS
    for part in parts:
        flowing = part(flowing)
    assert torch.equal(flowing, expected(TOKENS))


def test_first_weights_depend_on_seed_and_name_only() -> None:
    one, two = whole(CONFIG, seed=1).state_dict(), whole(CONFIG, seed=2).state_dict()
    matrices = [name for name in one if one[name].ndim == 2]

    assert len({one[name].flatten()[0].item() for name in matrices}) == len(matrices)
    assert not any(torch.equal(one[name], two[name]) for name in matrices)
    assert all(torch.equal(one[name], torch.ones(32)) for name in one if name not in matrices)
    assert one["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    residual = one["model.layers.1.mlp.down_proj.weight"].std().item()
    assert residual == pytest.approx(0.02 / 6**0.5, rel=0.1)


def test_bfloat16_is_the_rounded_float32() -> None:
    exact = whole(CONFIG)
    rounded = build_layers(CONFIG, 0, 5, seed=0, dtype=torch.bfloat16)

    for name, value in rounded.state_dict().items():
        assert torch.equal(value, exact.state_dict()[name].to(torch.bfloat16))
    assert rounded(TOKENS).dtype == torch.bfloat16


def test_a_token_sees_nothing_after_it() -> None:
    model, changed = whole(CONFIG), TOKENS.clone()
    changed[:, 10:] = 5

    assert torch.equal(model(TOKENS)[:, :10], model(changed)[:, :10])
    assert not torch.equal(model(TOKENS)[:, 10:], model(changed)[:, 10:])


def test_loss_is_the_mean_in_float32() -> None:
    logits = torch.randn(2, 24, 97, dtype=torch.bfloat16)
    picked = logits.float().log_softmax(-1).gather(-1, TOKENS.unsqueeze(-1))

    loss = next_token_loss(logits, TOKENS)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -picked.mean())


def test_activation_shape_is_what_a_part_sends() -> None:
    shape = activation_shape(CONFIG, microbatch_size=2, sequence_length=24)

    assert build_layers(CONFIG, 0, 2, seed=0)(TOKENS).shape == shape


def test_missing_vocabulary_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size"):
        whole(CONFIG.model_copy(update={"vocab_size": None}))
