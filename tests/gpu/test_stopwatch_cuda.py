import pytest
import torch
from torch import nn

from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.engine.stopwatch import Stopwatch, run_in_turn

pytestmark = pytest.mark.gpu


def watch_of(size: int) -> Stopwatch:
    stage = ModelStage(
        nn.Linear(size, size, device="cuda"), is_first=False, is_last=False, num_microbatches=1
    )
    return Stopwatch(stage, torch.ones(size, size, device="cuda"))


def test_times_are_those_of_the_device() -> None:
    small, large = watch_of(64), watch_of(8192)
    run_in_turn([small, large], num_warmup=3, num_microbatches=5, least_s=0.0)
    # The host only launches a kernel for either; the device multiplies two million times as much.
    assert large.medians.forward > 10 * small.medians.forward
    assert large.medians.backward_weight > 10 * small.medians.backward_weight
