"""How exact the emulated WAN is, as root: python -m tests.benchmarks.wan_calibration."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

from crosspipe_ray.testing.wan import Wan, WanSpec, emulated_wan, mesh, state
from tests.wan.probes import Datagrams, goodput_mbit_s

LATENCIES_MS = (0, 1, 10, 25, 50, 100)
LARGE = "4096 131072 67108864"
# latency_ms, bandwidth_mbit_s, loss, congestion control, large buffers?, megabytes
STREAMS = (
    (5, 10, 0.0, "bbr", False, 3),
    (5, 100, 0.0, "bbr", False, 30),
    (5, 1000, 0.0, "bbr", False, 250),
    (5, 1000, 0.0, "cubic", False, 250),
    (25, 1000, 0.0, "bbr", True, 800),
    (50, 1000, 0.0, "bbr", False, 80),
    (50, 1000, 0.0, "bbr", True, 1000),
    (50, 1000, 0.001, "bbr", True, 1000),
    (50, 1000, 0.001, "cubic", True, 6),
    (25, None, 0.0, "bbr", True, 1500),
)


def main() -> None:
    """Prints two tables."""
    print("one way, ms | round trip, ms: median | 90 % below")
    with emulated_wan(mesh("us", "eu")) as wan, ExitStack() as stack:
        datagrams = Datagrams(wan, stack)
        for latency_ms in LATENCIES_MS:
            wan.set("us", "eu", latency_ms=latency_ms)
            trips = quantiles([datagrams.round_trip_ms() for _ in range(100)], n=10)
            print(f"{latency_ms} | {trips[4]:.2f} | {trips[8]:.2f}")
    print(
        "one way, ms | link, Mbit/s | loss | TCP | buffers, MiB | stream, Mbit/s | emulator, core"
    )
    for latency_ms, rate, loss, control, has_large, num_megabytes in STREAMS:
        spec = _spec(control, has_large, latency_ms=latency_ms, bandwidth_mbit_s=rate, loss=loss)
        with emulated_wan(spec) as wan:
            measured, share = _stream(wan, num_megabytes * 1_000_000)
        buffers = "64" if has_large else "default"
        print(
            f"{latency_ms} | {rate} | {loss:.1%} | {control} | {buffers} | {measured:.0f} | "
            f"{share:.0%}"
        )


def _spec(control: str, has_large: bool, **settings: float | None) -> WanSpec:
    sysctls = {f"net.ipv4.tcp_{side}": LARGE for side in ("rmem", "wmem")} if has_large else {}
    spec = mesh("us", "eu", congestion_control=control, **settings)
    return spec.model_copy(update={"sysctls": sysctls})


def _stream(wan: Wan, num_bytes: int) -> tuple[float, float]:
    """Rate of one stream, and the emulator's share of a core meanwhile."""
    start_s, start_cpu_s = time.perf_counter(), _emulator_cpu_s(wan)
    rate = goodput_mbit_s(wan, num_bytes, warm_up=0.6)
    return rate, (_emulator_cpu_s(wan) - start_cpu_s) / (time.perf_counter() - start_s)


def _emulator_cpu_s(wan: Wan) -> float:
    known = state.read(wan.name)
    assert known is not None
    assert known.emulator is not None
    fields = Path(f"/proc/{known.emulator.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
