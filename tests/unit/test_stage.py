from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from crosspipe_ray.config import ModelConfig
from crosspipe_ray.engine.stage import ModelStage, Stage, TiedHead, tie
from crosspipe_ray.training.model import DecoderPart, build_layers, next_token_loss

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
)
NUM_MICROBATCHES = 4
CUTS = [(0, 6), (0, 3, 6), (0, 1, 4, 6)]
ORDERS = ["all_f_all_i_all_w", "one_f_one_b", "late_w", "w_one_behind"]

Ops = list[tuple[str, int]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(microbatch: int) -> Tensor:
    return torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(microbatch))


def read_inputs(microbatch: int) -> Tensor:
    return tokens(microbatch)[:, :-1]


def read_labels(microbatch: int) -> Tensor:
    return tokens(microbatch)[:, 1:]


def make_stages(modules: Sequence[nn.Module]) -> list[ModelStage]:
    return [
        ModelStage(
            module,
            is_first=index == 0,
            is_last=index == len(modules) - 1,
            num_microbatches=NUM_MICROBATCHES,
            load_inputs=read_inputs if index == 0 else None,
            load_labels=read_labels if index == len(modules) - 1 else None,
        )
        for index, module in enumerate(modules)
    ]


def decoder_parts(cuts: Sequence[int], dtype: torch.dtype) -> list[DecoderPart]:
    return [build_layers(CONFIG, *layers, seed=0, dtype=dtype) for layers in pairwise(cuts)]


def ops_of(order: str, stage: int, num_stages: int) -> Ops:
    """One stage's ops in a valid order; warmup as 1F1B's where forwards and backwards alternate."""
    n = NUM_MICROBATCHES
    if order == "all_f_all_i_all_w":
        return [(kind, m) for kind in "FIW" for m in range(n)]
    warmup = min(num_stages - stage, n)
    ops = [("F", m) for m in range(warmup)]
    for m in range(n):
        ops += [("I", m)]
        ops += [("W", m)] * (order == "one_f_one_b") + [("W", m - 1)] * (
            order == "w_one_behind" and m > 0
        )
        ops += [("F", m + warmup)] * (m + warmup < n)
    ops += [("W", m) for m in range(n)] if order == "late_w" else []
    return ops + ([("W", n - 1)] if order == "w_one_behind" else [])


def run(stages: Sequence[Stage], order: str) -> None:
    """Runs one step by hand: each stage in its own order, whenever its input is there."""
    programs = [ops_of(order, index, len(stages)) for index in range(len(stages))]
    inbox: dict[tuple[str, int, int], Tensor | None] = {}
    for m in range(NUM_MICROBATCHES):
        inbox["F", 0, m] = inbox["I", len(stages) - 1, m] = None
    while any(programs):
        num_left = sum(map(len, programs))
        for index, program in enumerate(programs):
            while program and (
                program[0][0] == "W" or (program[0][0], index, program[0][1]) in inbox
            ):
                run_op(stages[index], index, *program.pop(0), inbox)
        assert sum(map(len, programs)) < num_left, f"{order} deadlocks: {programs}"


def run_op(
    stage: Stage, index: int, kind: str, m: int, inbox: dict[tuple[str, int, int], Tensor | None]
) -> None:
    if kind == "F":
        inbox["F", index + 1, m] = stage.forward(m, inbox.pop(("F", index, m)))
    elif kind == "I":
        inbox["I", index - 1, m] = stage.backward_input(m, inbox.pop(("I", index, m)))
    else:
        stage.backward_weight(m)


def run_plain(module: nn.Module) -> tuple[float, ...]:
    """Plain PyTorch gradient accumulation."""
    losses = []
    for m in range(NUM_MICROBATCHES):
        loss = next_token_loss(module(read_inputs(m)), read_labels(m))
        torch.autograd.backward(loss / NUM_MICROBATCHES)
        losses.append(loss.item())
    return tuple(losses)


def gradients(modules: Sequence[ModelStage | nn.Module]) -> dict[str, Tensor]:
    found = {name: p.grad for module in modules for name, p in module.named_parameters()}
    assert all(gradient is not None and gradient.grad_fn is None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cuts", CUTS, ids=["1 stage", "2 stages", "3 stages"])
def test_losses_and_gradients_are_bit_identical_to_plain_autograd(
    cuts: tuple[int, ...], order: str, dtype: torch.dtype
) -> None:
    plain = build_layers(CONFIG, 0, 6, seed=0, dtype=dtype)
    expected = run_plain(plain)
    stages = make_stages(decoder_parts(cuts, dtype))

    run(stages, order)

    assert stages[-1].losses == expected
    assert_equal(gradients(stages), gradients([plain]))


def test_a_second_step_starts_clean_after_an_aborted_one() -> None:
    stages = make_stages(decoder_parts((0, 3, 6), torch.float32))
    run(stages, "one_f_one_b")
    expected = gradients(stages)

    stages[1].forward(0, stages[0].forward(0, None))  # aborted: between F and I
    stages[1].forward(1, stages[0].forward(1, None))
    stages[1].backward_input(0, None)  # and between I and W
    for stage in stages:
        stage.zero_gradients()
        assert stage.losses == ()
    run(stages, "late_w")

    assert_equal(gradients(stages), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_any_list_of_modules_works_and_those_without_linear_layers_are_not_split(
    order: str,
) -> None:
    def modules() -> list[nn.Module]:
        torch.manual_seed(0)
        mix = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24), nn.LayerNorm(24))
        return [nn.Embedding(61, 24), mix, nn.Linear(24, 61)]

    plain = nn.Sequential(*modules())
    expected = run_plain(plain)
    stages = make_stages(modules())

    run(stages, order)

    assert [stage.splits_backward for stage in stages] == [False, True, True]
    assert stages[-1].losses == expected
    got = [p.grad for stage in stages for _, p in stage.named_parameters()]
    assert all(
        torch.equal(a, b.grad)
        for a, b in zip(got, plain.parameters(), strict=True)
        if a is not None and b.grad is not None
    )
    assert None not in got


def test_a_first_stage_without_parameters_sends_nothing_back() -> None:
    class OneHot(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids, 61).float()

    stages = make_stages([OneHot(), nn.Linear(61, 61)])

    run(stages, "one_f_one_b")

    assert len(gradients(stages)) == 2


def test_f_keeps_only_the_graph_and_i_frees_it() -> None:
    stage = ModelStage(
        build_layers(CONFIG, 1, 3, seed=0), is_first=False, is_last=False, num_microbatches=1
    )
    kept: list[weakref.ref[Tensor]] = []
    outputs: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        alias = tensor.detach()
        kept.append(weakref.ref(alias))
        return alias

    stage.module.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[-1])))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.forward(0, torch.randn(2, 16, 32))
    assert outputs[0]() is None
    assert all(reference() is not None for reference in kept)

    stage.backward_input(0, torch.randn(2, 16, 32))
    assert all(reference() is None for reference in kept)
    assert all(tensor.grad_fn is None for tensor in stage.store.tensors(0))


def test_evaluation_gives_the_losses_of_training_without_a_graph() -> None:
    stages = make_stages(decoder_parts((0, 3, 6), torch.float32))
    run(stages, "one_f_one_b")

    activation = stages[0].evaluate(2, None)
    loss = stages[1].evaluate(2, activation)

    assert not activation.requires_grad
    assert not loss.requires_grad
    assert loss.item() == stages[1].losses[2]


def make_tied(cuts: Sequence[int]) -> tuple[list[ModelStage], TiedHead]:
    parts = decoder_parts(cuts, torch.float32)
    tied = tie(parts[0], parts[-1])
    return make_stages(parts), tied


@pytest.mark.parametrize("cuts", CUTS, ids=["1 stage", "2 stages", "3 stages"])
def test_a_tied_head_is_the_embedding_under_every_schedule(cuts: tuple[int, ...]) -> None:
    whole = build_layers(CONFIG, 0, 6, seed=0)
    assert whole.lm_head is not None
    assert whole.model.embed_tokens is not None
    whole.lm_head.weight = whole.model.embed_tokens.weight
    losses = run_plain(whole)
    results = []
    for order in ORDERS:
        stages, tied = make_tied(cuts)
        run(stages, order)
        tied.fold_gradient()
        assert stages[-1].losses == losses
        results.append(gradients(stages))

    assert "lm_head.weight" not in results[0]
    for other in results[1:]:
        assert_equal(other, results[0])
    for name, gradient in gradients([whole]).items():
        torch.testing.assert_close(results[0][name], gradient)


def test_a_tied_head_moves_with_the_embedding_and_is_cleared_with_its_stage() -> None:
    first, last = decoder_parts((0, 3, 6), torch.float32)
    tied = tie(first, last)
    stages = make_stages([first, last])
    run(stages, "one_f_one_b")
    embedding, head = first.get_submodule("model.embed_tokens"), last.get_submodule("lm_head")
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    assert head.weight.grad is not None

    stages[1].zero_gradients()
    before = gradients([embedding])
    tied.fold_gradient()
    assert_equal(gradients([embedding]), before)

    torch.optim.AdamW(embedding.parameters(), foreach=False).step()
    assert torch.equal(head.weight, embedding.weight)
    assert "lm_head.weight" not in last.state_dict()
