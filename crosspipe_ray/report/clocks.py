"""What is known of the clocks of a run's hosts, for people."""

from __future__ import annotations

from collections.abc import Mapping

from crosspipe_ray.clock_estimate import ASYMMETRY, HostClock


def clocks_markdown(clocks: Mapping[int, HostClock]) -> str:
    """A table of the clocks that are not rank 0's, and what it cannot know; empty for one clock."""
    if not clocks:
        return ""
    by_clock: dict[HostClock, list[int]] = {}
    for rank, clock in sorted(clocks.items()):
        by_clock.setdefault(clock, []).append(rank)
    lines = ["| clock of ranks | offset | drift | error | round trip |", "|---|---|---|---|---|"]
    for clock, ranks in by_clock.items():
        lines.append(f"| {', '.join(map(str, ranks))} | {_row(clock)} |")
    where = "Against rank 0's clock, which everything is shown by; errors hold during the run."
    return "\n".join([*lines, "", f"{where} {ASYMMETRY}"])


def _row(clock: HostClock) -> str:
    return (
        f"{clock.offset_ns / 1e6:+,.3f} ms | {clock.drift_ppm:+.1f} ppm | "
        f"{clock.error_ns / 1e6:.3f} ms, {clock.drift_error_ppm:.1f} ppm | "
        f"{clock.round_trip_ns / 1e6:.3f} ms"
    )
