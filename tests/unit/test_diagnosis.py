import re
from typing import Any

import pytest

from crosspipe_ray.diagnosis import Finding, NodeFacts, Severity, Way, diagnose

VERSIONS = {"python": "3.12.3", "ray": "2.60.0", "torch": "2.13.0"}
MIB = 1024 * 1024


def node(address: str = "10.0.0.1", **changes: Any) -> NodeFacts:
    """One in perfect health, on a host of its own."""
    facts: dict[str, Any] = {
        "address": address,
        "labels": {"region": "us"},
        "versions": VERSIONS,
        "boot_id": address,
        "congestion_control": "bbr",
        "available_congestion_controls": ("cubic", "bbr"),
        "tcp_rmem_bytes": 64 * MIB,
        "tcp_wmem_bytes": 64 * MIB,
        "has_slow_start_after_idle": False,
        "is_clock_synchronised": True,
    }
    return NodeFacts(**facts | changes)


def far(address: str = "10.0.0.1", *, round_trip_ms: float = 100, **changes: Any) -> NodeFacts:
    way = Way(peer="10.0.0.2", round_trip_us=round_trip_ms * 1000)
    return node(address, ways=(way,), **changes)


def findings(*nodes: NodeFacts, bandwidth: float = 125e6) -> list[Finding]:
    return diagnose(nodes, label="region", bandwidth_bytes_per_s=bandwidth)


def only(*nodes: NodeFacts, bandwidth: float = 125e6) -> Finding:
    [finding] = findings(*nodes, bandwidth=bandwidth)
    assert "\n" not in finding.problem + finding.command
    return finding


def test_nothing_is_wrong_with_healthy_nodes() -> None:
    assert findings(far(), node("10.0.0.2")) == []


@pytest.mark.parametrize(
    ("name", "version", "command"),
    [
        ("ray", "2.51.0", "pip install ray==2.60.0"),
        ("torch", "2.9.1", "pip install torch==2.13.0"),
        ("python", "3.11.9", "uv python install 3.12.3"),
    ],
)
def test_versions_have_to_agree(name: str, version: str, command: str) -> None:
    finding = only(node(), node("10.0.0.2", versions=VERSIONS | {name: version}))
    assert finding == Finding(
        Severity.ERROR, "10.0.0.2", f"{name} {version}, but {VERSIONS[name]} on 10.0.0.1", command
    )


@pytest.mark.parametrize("change", [{"python": "3.12.9"}, {"torch": "2.13.0+cpu"}])
def test_builds_and_patch_releases_may_differ(change: dict[str, str]) -> None:
    assert findings(node(), node("10.0.0.2", versions=VERSIONS | change)) == []


def test_a_node_without_its_label_is_noted_and_no_label_at_all_is_an_error() -> None:
    bare = node("10.0.0.2", labels={})
    assert only(node(), bare).severity is Severity.NOTE
    finding = only(bare)
    assert finding.severity is Severity.ERROR
    assert "--labels region=NAME" in finding.command


def test_a_closed_port_is_an_error_at_the_node_that_closes_it() -> None:
    way = Way(peer="10.0.0.2", round_trip_us=None)
    finding = only(node(ways=(way,)), node("10.0.0.2"))
    assert (finding.severity, finding.where) == (Severity.ERROR, "10.0.0.2")
    assert finding.command == "sudo iptables -I INPUT -p tcp -s 10.0.0.1 -j ACCEPT"


def test_open_ray_ports_matter_between_hosts() -> None:
    assert findings(node(has_token_auth=False)) == []
    finding = only(node(has_token_auth=False), node("10.0.0.2"))
    assert finding.severity is Severity.WARNING
    assert "RAY_AUTH_MODE=token" in finding.command


def test_a_token_file_that_nobody_uses_is_noted() -> None:
    finding = only(node(has_token_auth=False, has_token_file=True))
    assert "auth_token exists" in finding.problem


def test_small_buffers_are_named_with_the_rate_they_allow() -> None:
    """4 MiB at 100 ms: 197 Mbit/s were measured."""
    finding = only(far(tcp_wmem_bytes=4 * MIB))
    assert finding.severity is Severity.WARNING
    assert finding.command == f'sudo sysctl -w net.ipv4.tcp_wmem="4096 131072 {64 * MIB}"'
    rate = re.search(r"about (\d+) Mbit/s of 1000 over 100 ms", finding.problem)
    assert rate is not None
    assert int(rate[1]) == pytest.approx(197, rel=0.2)


def test_the_buffers_that_doctor_asks_for_satisfy_it() -> None:
    size = int(only(far(tcp_rmem_bytes=MIB)).command.split()[-1].strip('"'))
    assert findings(far(tcp_rmem_bytes=size)) == []


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        (
            {"congestion_control": "cubic"},
            "sudo sysctl -w net.ipv4.tcp_congestion_control=bbr",
        ),
        (
            {"congestion_control": "cubic", "available_congestion_controls": ("cubic",)},
            "sudo modprobe tcp_bbr && sudo sysctl -w net.ipv4.tcp_congestion_control=bbr",
        ),
        (
            {"has_slow_start_after_idle": True},
            "sudo sysctl -w net.ipv4.tcp_slow_start_after_idle=0",
        ),
    ],
)
def test_settings_of_tcp_matter_on_long_ways_only(changes: dict[str, Any], command: str) -> None:
    assert only(far(**changes)).command == command
    assert findings(far(round_trip_ms=0.2, **changes)) == []


def test_unknown_settings_are_no_finding() -> None:
    unknown: dict[str, Any] = {
        "congestion_control": None,
        "tcp_rmem_bytes": None,
        "tcp_wmem_bytes": None,
        "has_slow_start_after_idle": None,
        "is_clock_synchronised": None,
        "boot_id": None,
    }
    assert findings(far(**unknown)) == []


def test_clocks_matter_between_hosts_only() -> None:
    loose = node(is_clock_synchronised=False)
    assert findings(loose) == []
    assert only(loose, node("10.0.0.2")).command == "sudo timedatectl set-ntp true"


def test_a_wrong_clock_is_found_once_beyond_what_a_round_trip_can_tell() -> None:
    def pair(offset_us: float) -> tuple[NodeFacts, NodeFacts]:
        there = Way(peer="10.0.0.2", round_trip_us=1_500, clock_offset_us=offset_us)
        back = Way(peer="10.0.0.1", round_trip_us=1_500, clock_offset_us=-offset_us)
        return node(ways=(there,)), node("10.0.0.2", ways=(back,))

    assert findings(*pair(1_700)) == []
    finding = only(*pair(-9_000))
    assert finding.problem == "clock is -9.0 ms (+-0.8) off that of 10.0.0.1"


def test_gpus_that_torch_does_not_see_are_an_error() -> None:
    finding = only(node(num_ray_gpus=2, versions=VERSIONS | {"torch": "2.13.0+cpu"}))
    assert finding.severity is Severity.ERROR
    assert "Ray hands out 2 GPUs, torch 2.13.0+cpu sees 0" in finding.problem


def test_versions_of_nccl_have_to_agree() -> None:
    gpu: dict[str, Any] = {"num_ray_gpus": 1, "gpus": ("H200",)}
    wrong = findings(node(nccl="2.27.3", **gpu), node("10.0.0.2", nccl="2.26.2", **gpu))
    assert [finding.severity for finding in wrong] == [Severity.ERROR] * 2


def test_the_worst_comes_first() -> None:
    sick = far("10.0.0.1", congestion_control="cubic", num_ray_gpus=1)
    severities = [finding.severity for finding in findings(sick, node("10.0.0.2", labels={}))]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.NOTE]
