"""Commands about the network between the ranks: probe, doctor."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.carriers import MAX_STREAMS, Carrier
from crosspipe_ray.cli.running import Address, TransportName
from crosspipe_ray.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crosspipe_ray.actors.probe import ProbeRequest
    from crosspipe_ray.config import Config
    from crosspipe_ray.diagnosis import Finding
    from crosspipe_ray.links.profile import Estimate, MeasuredLink

RegionLabel = Annotated[str, typer.Option(help="Node label with a region's name.")]


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    app.command()(probe)
    app.command()(doctor)


def probe(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="LINKS.json", help="File to write.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.yaml", help="Regions, label and emulated links of a run."),
    ] = None,
    address: Address = None,
    transport: Annotated[
        list[TransportName] | None, typer.Option(help="May be repeated; default: all.")
    ] = None,
    num_streams: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MAX_STREAMS, help="Of streams; may be repeated: 1, 4, 8, 16."),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="All pairs of ranks, not one per region.")
    ] = False,
    region_label: RegionLabel = "region",
    max_age_hours: Annotated[
        float, typer.Option(min=0.01, help="Planning refuses the links when they are older.")
    ] = 168.0,
) -> None:
    """Measure the links between regions, both ways, over each transport."""
    from crosspipe_ray.config import load_config
    from crosspipe_ray.files import check_folders
    from crosspipe_ray.links.profile import write_link_profile

    if not (config or address):
        raise InputError("give --config CONFIG.yaml of a run, or --address of a Ray cluster")
    check_folders(output)
    run = load_config(config) if config else None  # before Ray is imported
    from crosspipe_ray.actors.probe import DEFAULT_CARRIERS
    from crosspipe_ray.actors.probe import probe as measure

    with _request(
        run,
        address=address,
        label=region_label,
        carriers=_carriers(DEFAULT_CARRIERS, transport, num_streams),
        all_pairs=all_pairs,
        max_age_hours=max_age_hours,
    ) as request:
        profile = measure(request, on_link=lambda link: typer.echo(_link_line(link)))
    for link in profile.links:
        if link.channel and link.carrier == profile.links[0].carrier:
            typer.echo(f"{link.name} shares a channel: {link.channel}")
    write_link_profile(profile, output)
    typer.echo(f"written to {output}")


@contextmanager
def _request(
    run: Config | None,
    *,
    address: str | None,
    label: str,
    carriers: Sequence[Carrier],
    all_pairs: bool,
    max_age_hours: float,
) -> Iterator[ProbeRequest]:
    """What to measure, while its cluster is there: that of a run, or the one at the address."""
    from crosspipe_ray.actors.cluster import cluster, connected
    from crosspipe_ray.actors.probe import ProbeRequest, regions_of_cluster, request_of

    if run:
        request = request_of(
            run, carriers=carriers, all_pairs=all_pairs, max_age_hours=max_age_hours
        )
        with cluster(request.regions, label=request.label, address=address):
            yield request
        return
    assert address, "since there is no config"
    with connected(address):
        yield ProbeRequest(
            regions=regions_of_cluster(label),
            label=label,
            carriers=carriers,
            all_pairs=all_pairs,
            max_age_hours=max_age_hours,
        )


def _carriers(
    known: Sequence[Carrier],
    transports: Sequence[TransportName] | None,
    num_streams: Sequence[int] | None,
) -> list[Carrier]:
    """What is asked for; by default all that are known."""
    wanted = {name.value for name in transports or TransportName}
    carriers = [each for each in known if each.transport in wanted]
    if num_streams and "streams" not in wanted:
        raise InputError("--num-streams: only --transport streams has them; give both")
    if num_streams:
        others = [each for each in carriers if each.transport != "streams"]
        carriers = others + [Carrier("streams", number) for number in dict.fromkeys(num_streams)]
    return carriers


def _link_line(link: MeasuredLink) -> str:
    """One measured link for a person."""
    return (
        f"{link.name} {link.carrier}: latency {_interval(link.latency_us, 1e-3, '.3f')} ms, "
        f"jitter p99 {link.jitter_us.p99 / 1e3:.3f} ms, "
        f"{_interval(link.bandwidth_bytes_per_s, 8e-6, '.0f')} Mbit/s, "
        f"{link.message_overhead_us.value:.0f} us per message, "
        f"fit within {link.residual:.1%} of {len(link.points)} sizes"
    )


def _interval(estimate: Estimate, factor: float, form: str) -> str:
    value, low, high = (
        format(each * factor, form) for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def doctor(
    address: Address = None,
    region_label: RegionLabel = "region",
    bandwidth_mbit_s: Annotated[
        float, typer.Option(min=1, help="That one connection is to reach on the longest way.")
    ] = 1000.0,
) -> None:
    """Find what is wrong with a cluster, and the commands that mend it."""
    from crosspipe_ray.actors.cluster import connected, local_regions
    from crosspipe_ray.actors.doctor import gather_facts
    from crosspipe_ray.diagnosis import Severity, diagnose

    here = connected(address) if address else local_regions(["local"], label=region_label)
    with here:
        nodes = gather_facts()
    findings = diagnose(nodes, label=region_label, bandwidth_bytes_per_s=bandwidth_mbit_s * 1e6 / 8)
    for finding in findings:
        typer.echo(_lines(finding))
    typer.echo(f"{_plural(len(nodes), 'node')}: {_count(findings)}")
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)


def _lines(finding: Finding) -> str:
    return (
        f"{finding.severity.name.lower():8}{finding.where}: {finding.problem}\n"
        f"        {finding.command}"
    )


def _count(findings: Sequence[Finding]) -> str:
    names = [finding.severity.name.lower() for finding in findings]
    counts = [_plural(names.count(name), name) for name in dict.fromkeys(names)]
    return ", ".join(counts) or "nothing is wrong"


def _plural(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"
