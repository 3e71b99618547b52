from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.engine.stopwatch import (
    OpTimes,
    Stopwatch,
    op_overhead_us,
    overhead_watches,
    run_in_turn,
)

MS_NS = 1_000_000


class Slow(nn.Module):
    """Lasts two milliseconds forwards and, by the scaling of its gradient, none backwards."""

    def forward(self, inputs: Tensor) -> Tensor:
        clock.sleep_until(clock.now_ns() + 2 * MS_NS)
        return inputs * 2


def watch_of(*modules: nn.Module) -> Stopwatch:
    stage = ModelStage(nn.Sequential(*modules), is_first=False, is_last=False, num_microbatches=1)
    return Stopwatch(stage, torch.ones(1, 4))


def test_times_are_those_of_each_op() -> None:
    slow, quick = watch_of(Slow(), nn.Linear(4, 4), Slow()), watch_of(nn.Linear(4, 4))
    run_in_turn([slow, quick], num_warmup=1, num_microbatches=5, least_s=0.0)
    assert len(slow.times) == len(quick.times) == 5
    assert all(times.forward >= 4000 for times in slow.times)
    assert slow.medians.forward > 10 * slow.medians.backward_weight
    assert slow.medians.forward > 10 * quick.medians.forward
    assert all(parameter.grad is None for _, parameter in slow.stage.named_parameters())


def test_it_goes_on_for_as_long_as_it_was_told() -> None:
    watch = watch_of(Slow())
    start_ns = clock.now_ns()
    run_in_turn([watch], num_warmup=0, num_microbatches=1, least_s=0.05)
    assert clock.now_ns() - start_ns >= 50 * MS_NS
    assert len(watch.times) > 1


def test_medians_and_dispersion_do_not_see_a_stall() -> None:
    watch = watch_of(nn.Identity())
    watch.times = [OpTimes(time, 2 * time, 1.0) for time in (9.0, 10.0, 10.0, 11.0, 5000.0)]
    assert watch.medians == (10.0, 20.0, 1.0)
    assert watch.dispersion == (0.1, 0.1, 0.0)


def test_the_fixed_cost_is_what_no_layer_adds_to() -> None:
    watches = [watch_of(nn.Identity()) for _ in range(4)]
    for watch, num_layers in zip(watches, (1, 2, 4, 8), strict=True):
        quick = OpTimes(30.0 + num_layers, 50.0 + 3 * num_layers, 10.0 + num_layers)
        watch.times = [OpTimes(3000.0, *quick[1:]), quick, OpTimes(*quick[:2], 900.0)]
    assert op_overhead_us(watches) == pytest.approx((30 + 50 + 10) / 3)


def test_the_fixed_cost_of_this_host_is_found() -> None:
    tiny = overhead_watches(dtype=torch.float32, device="cpu")
    run_in_turn(tiny, num_warmup=2, num_microbatches=20, least_s=0.0)
    assert 0 < op_overhead_us(tiny) < sum(tiny[0].medians)
