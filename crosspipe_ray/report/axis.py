"""Times as people read them: four digits and a unit, and round ticks for an axis."""

from __future__ import annotations

from collections.abc import Iterator

_UNITS = (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1))
_ROUND_STEPS = (1, 2, 5, 10)


def format_ns(time_ns: int) -> str:
    """A duration in its natural unit, to four digits.

    >>> format_ns(1_234_567), format_ns(64_000_000), format_ns(12_345_678_900), format_ns(0)
    ('1.235 ms', '64.00 ms', '12.35 s', '0 ns')
    """
    unit, unit_ns = next((u for u in _UNITS if time_ns >= u[1]), _UNITS[-1])
    num_decimals = 0 if unit_ns == 1 else max(0, 4 - len(str(time_ns // unit_ns)))
    return f"{time_ns / unit_ns:.{num_decimals}f} {unit}"


def ticks(end_ns: int, *, max_ticks: int = 12) -> Iterator[tuple[int, str]]:
    """Round times from 0 to ``end_ns``, a 1-2-5 step apart, all in one unit.

    >>> list(ticks(2_400_000, max_ticks=4))
    [(0, '0'), (1000000, '1 ms'), (2000000, '2 ms')]
    >>> list(ticks(1_200_000_000, max_ticks=4))
    [(0, '0'), (500000000, '0.5 s'), (1000000000, '1 s')]
    """
    step_ns = _step_ns(end_ns, max_ticks)
    unit, unit_ns = next((u for u in _UNITS if end_ns >= u[1]), _UNITS[-1])
    for time_ns in range(0, end_ns + 1, step_ns):
        yield time_ns, f"{time_ns / unit_ns:g} {unit}" if time_ns else "0"


def _step_ns(end_ns: int, max_ticks: int) -> int:
    power = 1
    while True:
        for factor in _ROUND_STEPS:
            if end_ns < factor * power * max_ticks:
                return factor * power
        power *= 10
