"""A transport per link against one for all, on links of opposite character.

    python -m tests.benchmarks.mixed_transports [--num-steps 15]

Three ranks, each a real Ray node in a network namespace: `us` behind 50 ms and 1 Gbit/s, which one
TCP connection with the usual buffers cannot fill, `eu-a` and `eu-b` in one LAN. Nine stages that
only sleep (2 ms blocks) go to and fro in the LAN before the ocean is crossed once each way, as the
placement `region_loop` has it; all messages are of one size.
Everything is the product's: `crosspipe probe` measures the carriers, the table picks one per link,
the plan is made with its times. Each rival has its own plan with the times of its one transport,
and of `streams` the best number per link. All groups stand at the same time and take turns step by
step. Prints medians over the steps after the first two. A few minutes; needs root and /dev/net/tun.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from contextlib import ExitStack
from statistics import median

from crosspipe_ray.actors.cluster import connected
from crosspipe_ray.actors.group import StageGroup, stage_group
from crosspipe_ray.actors.probe import ProbeRequest, probe
from crosspipe_ray.carriers import Carrier, TransportWish, Wish
from crosspipe_ray.engine.probing import ProbeSettings
from crosspipe_ray.links.choice import carriers_of, named_carriers, with_measured_links
from crosspipe_ray.links.profile import LinkProfile
from crosspipe_ray.lowering import lower
from crosspipe_ray.measured import measured_timeline
from crosspipe_ray.plan import Plan
from crosspipe_ray.planners.portfolio import plan
from crosspipe_ray.problem import Problem, Rank, Stage
from crosspipe_ray.program import lanes
from crosspipe_ray.testing.wan import Link, Region, WanSpec, emulated_wan

_CLUSTERS = ("us", "eu-a", "eu-b")
_FAR = {"latency_ms": 50.0, "bandwidth_mbit_s": 1000.0, "queue_ms": 1000.0}
_NEAR = {"latency_ms": 0.1, "queue_ms": 1000.0}
_WISHES: tuple[TransportWish, ...] = ("auto", "collective", "streams", "object_store")
_CARRIERS = (
    Carrier(), Carrier("object_store"), *(Carrier("streams", number) for number in (4, 8))
)  # fmt: skip
_MESSAGE_BYTES = 8 * 1024 * 1024
_BLOCK_US = 2000.0
_NUM_STAGES, _NUM_MICROBATCHES = 9, 4
_NUM_WARMUP_STEPS = 2
_TIMEOUT_S = 60.0
_LONGEST_S = 900.0


def main() -> None:
    """Makes the WAN and runs the rest of this file on its first host."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-steps", type=int, default=15)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _compare(options.num_steps)
        return
    spec = WanSpec(
        regions=tuple(Region(name=name, num_cpus=len(_WISHES) + 1) for name in _CLUSTERS),
        links=(
            Link(src="us", dst="eu-a", **_FAR),
            Link(src="us", dst="eu-b", **_FAR),
            Link(src="eu-a", dst="eu-b", **_NEAR),
        ),
        sysctls={"net.ipv4.tcp_slow_start_after_idle": 0},
    )
    with emulated_wan(spec, with_ray=True) as wan:
        module = [sys.executable, "-m", "tests.benchmarks.mixed_transports", "--inside"]
        done = wan.run("us", [*module, "--num-steps", str(options.num_steps)], timeout_s=_LONGEST_S)
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(done.stderr)


def _compare(num_steps: int) -> None:
    with connected("auto"), ExitStack() as stack:
        profile = probe(
            ProbeRequest(
                regions=_CLUSTERS,
                carriers=_CARRIERS,
                settings=ProbeSettings(
                    sizes=(1024, _MESSAGE_BYTES),
                    num_pings=9,
                    num_repeats=15,
                    train_bytes=2 * _MESSAGE_BYTES,
                ),
            )
        )
        _print_table(profile)
        plans = {wish: _plan(profile, wish) for wish in _WISHES}
        groups = {wish: _group(stack, made) for wish, made in plans.items()}
        makespans_s: dict[TransportWish, list[float]] = defaultdict(list)
        for step in range(num_steps):
            for wish, group in groups.items():
                [reports] = group.steps([step])
                timeline = measured_timeline(report.record for report in reports)
                makespans_s[wish].append(timeline.makespan_ns / 1e9)
        for group in groups.values():
            group.close()
    _print_result(plans, {wish: times[_NUM_WARMUP_STEPS:] for wish, times in makespans_s.items()})


def _plan(profile: LinkProfile, wish: TransportWish) -> Plan:
    problem = with_measured_links(_problem(), profile, lambda *_: Wish(wish))
    return plan(problem, method="greedy")


def _problem() -> Problem:
    """The first stage across the ocean, the others in turn on the two ranks of the LAN."""
    return Problem(
        num_microbatches=_NUM_MICROBATCHES,
        ranks=tuple(Rank(cluster=name) for name in _CLUSTERS),
        stages=tuple(
            Stage(
                rank=0 if stage == 0 else 2 - stage % 2,
                forward_us=_BLOCK_US,
                backward_input_us=_BLOCK_US,
                backward_weight_us=_BLOCK_US,
                output_bytes=_MESSAGE_BYTES,
            )
            for stage in range(_NUM_STAGES)
        ),
    )


def _group(stack: ExitStack, made: Plan) -> StageGroup:
    group = stack.enter_context(stage_group(_CLUSTERS, label="region", timeout_s=_TIMEOUT_S))
    programs = lower(made.problem, made.timeline)
    group.connect(carriers_of(made.problem), lanes(programs))
    group.rehearse(made.problem, programs)
    return group


def _print_table(profile: LinkProfile) -> None:
    links = list(dict.fromkeys(link.name for link in profile.links))
    print(f"| one message of 8 MiB, ms | {' | '.join(links)} |\n|---|{'---|' * len(links)}")
    for carrier in _CARRIERS:
        delays = {
            link.name: f"{link.delay_us(_MESSAGE_BYTES) / 1000:.1f}"
            for link in profile.links
            if link.carrier == carrier
        }
        print(f"| {carrier} | {' | '.join(delays[name] for name in links)} |")


def _print_result(
    plans: dict[TransportWish, Plan], makespans_s: dict[TransportWish, list[float]]
) -> None:
    print("\n| | carriers | planned | measured | against mixed |\n|---|---|---|---|---|")
    mixed_s = makespans_s["auto"]
    for wish, made in plans.items():
        used = {
            str(named_carriers(made.problem)[f"{_CLUSTERS[a]}->{_CLUSTERS[b]}"])
            for a, b in lanes(lower(made.problem, made.timeline))
        }
        ratio = median(
            single / mixed for single, mixed in zip(makespans_s[wish], mixed_s, strict=True)
        )
        print(
            f"| {'mixed' if wish == 'auto' else wish} | {', '.join(sorted(used))} "
            f"| {made.timeline.makespan_ns / 1e6:.0f} ms "
            f"| {median(makespans_s[wish]) * 1e3:.0f} ms | {ratio:.2f} x |"
        )


if __name__ == "__main__":
    main()
