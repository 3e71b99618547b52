"""The receives that a step begins with are posted at the end of the step before, if one follows."""

from concurrent.futures import ThreadPoolExecutor

import torch

from crosspipe_ray.engine.rehearsal_rank import RehearsalRank
from crosspipe_ray.engine.transports import Handle, LoopbackHub
from crosspipe_ray.engine.transports.loopback import LoopbackTransport
from crosspipe_ray.generator import Recipe, generate
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import StepReport
from crosspipe_ray.ops import Kind
from crosspipe_ray.planners.portfolio import plan

TIMEOUT_S = 20.0
NUM_STEPS = 3


class CountingTransport(LoopbackTransport):
    """Counts the receives that are posted."""

    num_receives = 0

    def irecv(self, into: torch.Tensor, *, peer: int, tag: int) -> Handle:
        self.num_receives += 1
        return super().irecv(into, peer=peer, tag=tag)


def test_only_where_another_step_follows() -> None:
    recipe = Recipe(
        num_ranks=2,
        num_microbatches=4,
        forward_us=500,
        backward_input_us=500,
        backward_weight_us=500,
        output_bytes=100,
        latency_ratio=1.0,
    )
    made = plan(generate(recipe), method="zb-h1")
    programs = lower(made.problem, made.timeline)
    hub = LoopbackHub(2)
    transports = [CountingTransport(hub, rank) for rank in range(2)]

    def run(rank: int) -> list[tuple[StepReport, int]]:
        transport = transports[rank]
        worker = RehearsalRank(made.problem, programs[rank], transport, timeout_s=TIMEOUT_S)
        return [
            (worker.step(index, is_last=index + 1 == NUM_STEPS), transport.num_receives)
            for index in range(NUM_STEPS)
        ]

    with ThreadPoolExecutor(2) as pool:
        first, second = (each.result(TIMEOUT_S) for each in [pool.submit(run, r) for r in (0, 1)])
    # Rank 0 begins with an F of its own; rank 1 waits for its first two inputs.
    assert [op.kind for op in programs[1].ops[:3]] == [Kind.RECV_F, Kind.RECV_F, Kind.F]
    assert [count for _, count in first] == [4, 8, 12]
    assert [count for _, count in second] == [4 + 2, 8 + 2, 12]
    for reports in (first, second):
        peaks = {report.record.peak_posted_bytes for report, _ in reports}
        assert len(peaks) == 1
        assert all(len(report.record.arrived) == 4 for report, _ in reports)
