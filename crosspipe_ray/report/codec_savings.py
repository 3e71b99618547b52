"""What the codecs of a plan's links save."""

from __future__ import annotations

from dataclasses import dataclass

from crosspipe_ray.costs import stage_costs
from crosspipe_ray.plan import Plan
from crosspipe_ray.report.console import format_bytes
from crosspipe_ray.simulate import simulate


@dataclass(frozen=True, slots=True)
class CodecSavings:
    """A plan with its codecs, and the same order of ops and messages without.

    Attributes:
        kinds: the codecs that its messages go through.
        num_bytes, plain_bytes: of these messages in a step, with and without.
        makespan_ns, plain_makespan_ns: with and without.
    """

    kinds: tuple[str, ...]
    num_bytes: int
    plain_bytes: int
    makespan_ns: int
    plain_makespan_ns: int

    @property
    def saved_ratio(self) -> float:
        """Share of the makespan; below 0 where the codecs cost more than they save."""
        plain_ns = self.plain_makespan_ns
        return 1 - self.makespan_ns / plain_ns if plain_ns else 0.0


def codec_savings(plan: Plan) -> CodecSavings | None:
    """Compares; None where no message goes through a codec."""
    problem = plan.problem
    transfers = [
        transfer for costs in stage_costs(problem) for transfer in costs.transfers if transfer.codec
    ]
    if not transfers:
        return None
    plain = problem.with_links([link.model_copy(update={"codec": None}) for link in problem.links])
    timeline = simulate(plain, plan.schedule, send_order=plan.send_order)
    return CodecSavings(
        kinds=tuple(sorted({each.codec.kind for each in transfers if each.codec})),
        num_bytes=problem.num_microbatches * sum(each.num_bytes for each in transfers),
        plain_bytes=problem.num_microbatches * sum(each.plain_bytes for each in transfers),
        makespan_ns=plan.timeline.makespan_ns,
        plain_makespan_ns=timeline.makespan_ns,
    )


def codecs_line(plan: Plan) -> str:
    """The comparison in a line; empty where no message goes through a codec."""
    savings = codec_savings(plan)
    if savings is None:
        return ""
    return (
        f"{' and '.join(savings.kinds)}: numerics change; {format_bytes(savings.num_bytes)} per "
        f"step in place of {format_bytes(savings.plain_bytes)}; makespan "
        f"{savings.makespan_ns / 1e6:.1f} ms, this order without codecs "
        f"{savings.plain_makespan_ns / 1e6:.1f} ms ({savings.saved_ratio:.1%} saved, less against "
        "a plan of its own)"
    )
