"""Commands about an emulated WAN: wan up, status, set, partition, heal, exec, down."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosspipe_ray.errors import InputError

if TYPE_CHECKING:
    from crosspipe_ray.testing.wan import LinkReport, Wan

Name = Annotated[str, typer.Option("--name", help="Of the WAN, where there are several.")]
LinkName = Annotated[str, typer.Argument(metavar="LINK", help="Two regions, as us-eu.")]
OneWay = Annotated[
    bool, typer.Option("--one-way", help="Only from the first region to the second.")
]

_NAME = "default"


def add_commands(app: typer.Typer) -> None:
    """Registers the commands of this file."""
    wan = typer.Typer(
        help="A WAN of network namespaces on this machine.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (up, status, partition, heal, down):
        wan.command()(command)
    wan.command("set")(set_link)
    # What follows the region belongs to the other command, options and all.
    wan.command("exec", context_settings={"ignore_unknown_options": True})(execute)
    app.add_typer(wan, name="wan")


def up(
    topology: Annotated[Path, typer.Argument(metavar="TOPOLOGY.yaml")],
    ray: Annotated[bool, typer.Option("--ray", help="Start a Ray node on every host.")] = False,
    name: Name = _NAME,
) -> None:
    """Make a WAN, after removing what a crash has left of earlier ones."""
    from crosspipe_ray.testing.wan import lifecycle, load_spec
    from crosspipe_ray.testing.wan.network import make

    wan = make(load_spec(topology), name=name, with_ray=ray)
    lifecycle.detach(name)
    typer.echo(_headline(wan))
    if wan.ray_address:
        first = wan.spec.regions[0].name
        typer.echo(
            f"try: crosspipe wan exec {first} -- crosspipe rehearse PLAN.json "
            f"--address {wan.ray_address} --no-emulate-links"
        )


def status(name: Name = _NAME) -> None:
    """Show hosts and links."""
    wan = _attach(name)
    typer.echo(_headline(wan))
    for host in wan.spec.hosts:
        num_processes = len(wan.process_ids(host.name))
        typer.echo(f"  {host.name}: {host.address}, {num_processes} processes")
    for link in wan.report():
        typer.echo(f"  {_link_line(link)}")


def set_link(
    link: LinkName,
    latency_ms: Annotated[float | None, typer.Option(help="One way.")] = None,
    bandwidth_mbit_s: Annotated[float | None, typer.Option()] = None,
    jitter_ms: Annotated[float | None, typer.Option()] = None,
    loss: Annotated[float | None, typer.Option(help="Probability per wire segment.")] = None,
    queue_ms: Annotated[float | None, typer.Option(help="Longest wait before the link.")] = None,
    one_way: OneWay = False,
    name: Name = _NAME,
) -> None:
    """Change a link while it is in use; what is not given stays."""
    options = {
        "latency_ms": latency_ms,
        "bandwidth_mbit_s": bandwidth_mbit_s,
        "jitter_ms": jitter_ms,
        "loss": loss,
        "queue_ms": queue_ms,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    if not changes:
        raise InputError(f"wan set {link}: nothing to change; give one of {_flags(options)}")
    wan = _attach(name)
    src, dst = _ends(wan, link)
    wan.set(src, dst, one_way=one_way, **changes)


def partition(link: LinkName, one_way: OneWay = False, name: Name = _NAME) -> None:
    """Cut a link; what is on its way is lost."""
    wan = _attach(name)
    wan.partition(*_ends(wan, link), one_way=one_way)


def heal(link: LinkName, one_way: OneWay = False, name: Name = _NAME) -> None:
    """Mend a link that was cut."""
    wan = _attach(name)
    wan.heal(*_ends(wan, link), one_way=one_way)


def execute(
    region: Annotated[str, typer.Argument(metavar="REGION", help="Or one of its hosts.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    name: Name = _NAME,
) -> None:
    """Run a command on a host of a region."""
    wan = _attach(name)
    arguments = wan.command(region, command)
    os.execvpe(arguments[0], arguments, wan.environment)


def down(name: Name = _NAME) -> None:
    """Remove a WAN with all that runs in it."""
    from crosspipe_ray.testing.wan import lifecycle

    lifecycle.down(name)


def _attach(name: str) -> Wan:
    from crosspipe_ray.testing.wan import attach

    return attach(name)


def _flags(options: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in options)


def _ends(wan: Wan, link: str) -> tuple[str, str]:
    """The regions of a link; their names may contain the dash that joins them."""
    known = {"-".join(pair): pair for pair in wan.spec.directed_links}
    if link not in known:
        raise InputError(f"no link '{link}' in this WAN; links are {', '.join(known)}")
    return known[link]


def _headline(wan: Wan) -> str:
    regions = ", ".join(f"{each.name} ({each.num_hosts})" for each in wan.spec.regions)
    ray = f"; Ray at {wan.ray_address}" if wan.ray_address else ""
    return f"{wan.name}: up; regions {regions}{ray}"


def _link_line(link: LinkReport) -> str:
    settings = link.settings
    rate = settings.bandwidth_mbit_s
    parts = [
        f"{settings.latency_ms:g} ms",
        "no cap" if rate is None else f"{rate:g} Mbit/s",
        f"jitter {settings.jitter_ms:g} ms",
        f"loss {settings.loss:g}",
    ]
    counted = (
        f"{link.num_bytes / 1e6:.1f} MB delivered, {link.num_lost} of {link.num_segments} segments "
        f"lost, {link.num_queue_drops} queue drops"
    )
    state = "CUT, " if link.is_cut else ""
    return f"{link.src} -> {link.dst}: {state}{', '.join(parts)}; {counted}"
