from crosspipe_ray.clock_estimate import HostClock
from crosspipe_ray.measured import RankRecord, StepReport
from crosspipe_ray.ops import parse_op
from crosspipe_ray.timeline import Span
from crosspipe_ray.training.step_log import StepLog

MS = 1_000_000
START_NS = 1_700_000_000_000 * MS
# A minute of a run: its drift makes 6 ms.
WRONG = HostClock(at_ns=START_NS, offset_ns=-250 * MS, drift_ppm=100.0)
OFFSET_ONLY = HostClock(at_ns=START_NS, offset_ns=-250 * MS)
SENT, RECEIVED = parse_op("0SEND_F0"), parse_op("1RECV_F0")


def reports(step: int) -> list[StepReport]:
    """Rank 0 computes for 20 ms and sends for 5; then rank 1 does; rank 1's clock is wrong."""
    start_ns = START_NS + step * 60_000 * MS

    def far(ms: int) -> int:
        return WRONG.from_reference(start_ns + ms * MS)

    ended_ns, exchanged_ns, updated_ns = (start_ns + ms * MS for ms in (20, 50, 60))
    first = RankRecord(
        0,
        spans=[Span(parse_op("0F0"), start_ns, ended_ns)],
        sent={SENT: (1, ended_ns, ended_ns)},
    )
    second = RankRecord(
        1,
        spans=[Span(parse_op("1F0"), far(25), far(45))],
        waits=[Span(parse_op("1F0"), far(0), far(25))],
        arrived={RECEIVED: far(25)},
    )
    return [
        StepReport(step, first, (), 1.0, exchanged_ns, updated_ns),
        StepReport(step, second, (2.0,), 1.0, far(50), far(60)),
    ]


def test_steps_are_laid_on_one_clock_as_far_as_it_is_known() -> None:
    log = StepLog({1: OFFSET_ONLY})
    steps = [log.add(reports(index)) for index in range(2)]
    late_ns = [step.timeline.makespan_ns - 45 * MS for step in steps]
    assert late_ns == [4500, 6 * MS + 4500]  # 100 ppm of 45 ms, and of a minute
    log.correct({1: WRONG})
    assert [step.timeline.makespan_ns for step in log.steps] == [45 * MS, 45 * MS]
    for step in log.steps:
        [message] = step.timeline.sends
        assert message.arrive_ns - message.start_ns == 5 * MS
        assert (step.norm_exchange_s, step.optimizer_s) == (0.005, 0.01)


def test_one_clock_is_left_alone() -> None:
    log = StepLog({})
    step = log.add(reports(0))
    log.correct({})
    assert log.steps == [step]
