"""Commands about the network between the ranks: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.cli.running import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosspipe_ray.diagnosis import Finding

RegionLabel = Annotated[str, typer.Option(help="Node label with a region's name.")]


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    app.command()(doctor)


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
