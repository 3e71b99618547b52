"""Runs stages over and over and keeps what each of their ops took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crosspipe_ray.correction import relative_deviation
from crosspipe_ray.engine.stage import ModelStage
from crosspipe_ray.links.fit import fit_line

_NUM_KINDS = 3  # F, I and W
_NUM_LAYERS = (1, 2, 4, 8)
_WIDTH = 8


class OpTimes(NamedTuple):
    """Of one microbatch, in microseconds."""

    forward: float
    backward_input: float
    backward_weight: float


class Stopwatch:
    """A stage and the times of its ops, as they come.

    Args:
        stage: reads its own inputs and labels where it is first or last.
        activation: what it would receive, and the shape of what it sends.
    """

    def __init__(self, stage: ModelStage, activation: Tensor) -> None:
        self.stage = stage
        self.activation = activation
        self.times: list[OpTimes] = []

    def run_once(self) -> OpTimes:
        """F, I and W one after the other, as in the steady phase of a step."""
        stage, activation, microbatch = self.stage, self.activation, len(self.times)
        return OpTimes(
            time_us(lambda: stage.forward(microbatch, activation), activation.device),
            time_us(lambda: stage.backward_input(microbatch, activation), activation.device),
            time_us(lambda: stage.backward_weight(microbatch), activation.device),
        )

    @property
    def medians(self) -> OpTimes:
        """Of all microbatches so far."""
        return OpTimes(*map(median, zip(*self.times, strict=True)))

    @property
    def dispersion(self) -> OpTimes:
        """Median absolute deviation of each op over its median."""
        return OpTimes(*map(relative_deviation, zip(*self.times, strict=True)))


def run_in_turn(
    watches: Sequence[Stopwatch], *, num_warmup: int, num_microbatches: int, least_s: float
) -> None:
    """Runs the stages in turn, so that what slows the host down slows all of them down.

    Args:
        watches: their gradients are cleared before and after.
        num_warmup: microbatches that are not counted.
        num_microbatches: at least so many are.
        least_s: and for at least so long.
    """
    for watch in watches:
        watch.stage.zero_gradients()
        for _ in range(num_warmup):
            watch.run_once()
    deadline_s = time.monotonic() + least_s
    num_done = 0
    while num_done < num_microbatches or time.monotonic() < deadline_s:
        for watch in watches:
            watch.times.append(watch.run_once())
        num_done += 1
    for watch in watches:
        watch.stage.zero_gradients()


def overhead_watches(*, dtype: torch.dtype, device: torch.device | str) -> list[Stopwatch]:
    """Stages of more and more layers that compute next to nothing."""
    activation = torch.zeros(1, _WIDTH, dtype=dtype, device=device)
    return [
        Stopwatch(_tiny_stage(num_layers, dtype=dtype, device=device), activation)
        for num_layers in _NUM_LAYERS
    ]


def op_overhead_us(watches: Sequence[Stopwatch]) -> float:
    """The fixed cost of an op: what is left when the line through those stages comes to no layer.

    The fastest microbatch of each counts: on a busy host the others have waited for a core, which
    takes longer than what is measured here.

    Source: the ``a + b x size`` of HeteroPipe's cost model; here the size is a number of layers.
    """
    totals = [min(map(sum, watch.times)) for watch in watches]
    return fit_line(_NUM_LAYERS, totals).intercept / _NUM_KINDS


def _tiny_stage(num_layers: int, *, dtype: torch.dtype, device: torch.device | str) -> ModelStage:
    layers = [nn.Linear(_WIDTH, _WIDTH, dtype=dtype, device=device) for _ in range(num_layers)]
    return ModelStage(nn.Sequential(*layers), is_first=False, is_last=False, num_microbatches=1)


def time_us(run: Callable[[], object], device: torch.device) -> float:
    """Time of the device, from the start of the first kernel to the end of the last one."""
    if device.type == "cuda":
        return _cuda_time_us(run, device)
    start_ns = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start_ns) / 1e3


def _cuda_time_us(run: Callable[[], object], device: torch.device) -> float:
    start, end = _cuda_event(), _cuda_event()
    stream = torch.cuda.current_stream(device)
    stream.synchronize()
    start.record(stream)
    run()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's own
