from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from crosspipe_ray.engine.split_backward import (
    DeferredLinear,
    WeightGradientStore,
    defer_linear_gradients,
)
from crosspipe_ray.ops import WHOLE, Part


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Biases, a norm, an input that two layers share, and a layer that is used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48)
        self.left = nn.Linear(48, 64)
        self.right = nn.Linear(48, 64, bias=False)
        self.out = nn.Linear(64, 48)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(3):
            hidden = self.norm(inputs)
            inputs = inputs + self.out(self.left(hidden).relu() * self.right(hidden))
        return inputs


def seeded(module: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return module().to(dtype)


def microbatches(*shape: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def run_plain(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    for leaf in leaves:
        (module(leaf).square().mean() / len(leaves)).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def run_split(
    module: nn.Module, inputs: list[Tensor], parts: Sequence[Part] = (WHOLE,)
) -> list[Tensor]:
    """All F, all I, all W, each W in these parts."""
    store = WeightGradientStore()
    assert defer_linear_gradients(module, store)
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    losses = [module(leaf).square().mean() / len(leaves) for leaf in leaves]
    for microbatch, loss in enumerate(losses):
        with store.collect(microbatch):
            loss.backward()
    for microbatch in range(len(losses)):
        for part in parts:
            store.accumulate(microbatch, part)
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def assert_same_gradients(split: nn.Module, plain: nn.Module) -> None:
    for (name, ours), theirs in zip(split.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 48), (3, 17, 48), (2, 3, 5, 48)])
def test_gradients_are_bit_identical_to_autograd(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    plain, inputs = seeded(Residual, dtype), microbatches(*shape, dtype=dtype)
    split = copy.deepcopy(plain)

    expected, got = run_plain(plain, inputs), run_split(split, inputs)

    assert len(got) == len(expected) == 3
    assert all(map(torch.equal, got, expected))
    assert_same_gradients(split, plain)


@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_parts_of_w_give_the_same_gradients(num_parts: int) -> None:
    plain, inputs = seeded(Residual, torch.float32), microbatches(33, 48, dtype=torch.float32)
    split = copy.deepcopy(plain)
    parts = [Part(part, part + 1, num_parts) for part in range(num_parts)]

    run_plain(plain, inputs)
    run_split(split, inputs, parts)

    assert_same_gradients(split, plain)


def test_parts_of_w_take_their_share_of_the_layers() -> None:
    module, store = (
        nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(5))),
        WeightGradientStore(),
    )
    defer_linear_gradients(module, store)
    with store.collect(0):
        module(torch.ones(1, 2)).sum().backward()

    done = []
    for part in (Part(0, 1, 4), Part(1, 2, 4), Part(2, 4, 4)):
        store.accumulate(0, part)
        done.append(sum(layer.weight.grad is not None for layer in module))
    assert done == [1, 2, 5]


@pytest.mark.parametrize("bias", [False, True])
def test_transposed_inputs_are_bit_identical_too(bias: bool) -> None:
    plain = nn.Linear(48, 32, bias=bias)
    split = copy.deepcopy(plain)
    inputs = [tensor.transpose(0, 1) for tensor in microbatches(5, 7, 48, dtype=torch.float32)]

    assert all(map(torch.equal, run_split(split, inputs), run_plain(plain, inputs)))
    assert_same_gradients(split, plain)


def test_weight_gradients_wait_for_w() -> None:
    layer, store = nn.Linear(4, 3), WeightGradientStore()
    defer_linear_gradients(layer, store)
    with store.collect(0):
        layer(torch.ones(2, 4)).sum().backward()

    assert [parameter.grad for parameter in layer.parameters()] == [None, None]
    store.accumulate(0)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0))
    with pytest.raises(KeyError):
        store.accumulate(0)


def test_layers_that_share_an_input_keep_one_copy() -> None:
    module, store = Residual(), WeightGradientStore()
    defer_linear_gradients(module, store)
    with store.collect(0):
        module(torch.randn(2, 3, 48)).sum().backward()

    pointers = [tensor.data_ptr() for tensor in store.tensors(0)]
    assert len(pointers) == 3 * 3 * 2
    # per use: the norm's output, the product, and three output gradients
    assert len(set(pointers)) == 3 * 5


def test_names_values_and_type_checks_stay() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    state = copy.deepcopy(module.state_dict())

    deferred = defer_linear_gradients(module, WeightGradientStore())

    assert deferred == [module[0]]
    assert isinstance(module[0], nn.Linear)
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)


def test_layers_that_it_cannot_defer_are_left_alone() -> None:
    shared, frozen, own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight = shared.weight
    frozen.weight.requires_grad_(False)
    attention = nn.MultiheadAttention(4, 1)  # its out_proj is a subclass that is never called
    module = nn.ModuleList([shared, twin, frozen, own, attention])

    assert defer_linear_gradients(module, WeightGradientStore()) == [own]
    assert not any(isinstance(layer, DeferredLinear) for layer in (shared, twin, frozen))


def test_backward_outside_of_a_microbatch_is_an_error() -> None:
    layer = nn.Linear(4, 4)
    defer_linear_gradients(layer, WeightGradientStore())

    with pytest.raises(RuntimeError, match=r"outside of WeightGradientStore\.collect"):
        layer(torch.ones(1, 4)).sum().backward()
