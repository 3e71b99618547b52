"""The doctor on a real cluster: what it finds out, and what its command says."""

import socket
import subprocess
import sys
import threading

import pytest
import ray

from crosspipe_ray.actors.doctor import gather_facts, tell_time, way_to
from crosspipe_ray.diagnosis import Severity, diagnose

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("two_regions")
def test_every_node_tells_its_facts_and_its_ways() -> None:
    nodes = gather_facts(timeout_s=60)
    assert [node.labels["region"] for node in nodes] == ["us", "eu"]
    for node in nodes:
        assert node.versions == nodes[0].versions
        assert node.versions["ray"] == ray.__version__
        assert node.boot_id == nodes[0].boot_id
        [way] = node.ways
        assert way.round_trip_us is not None
        assert 0 < way.round_trip_us < 100_000
        assert abs(way.clock_offset_us) <= way.round_trip_us / 2
    found = diagnose(nodes, label="region", bandwidth_bytes_per_s=125e6)
    assert [finding for finding in found if finding.severity is Severity.ERROR] == []


def test_a_closed_port_is_no_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    assert way_to(address).round_trip_us is None


def test_a_time_server_tells_the_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: tell_time(listener.accept()[0]))
        thread.start()
        way = way_to(listener.getsockname())
        thread.join(10)
    assert not thread.is_alive()
    assert way.round_trip_us is not None
    assert abs(way.clock_offset_us) <= way.round_trip_us / 2


def test_the_command_ends_well_and_names_errors(two_regions: tuple[str, ...]) -> None:
    assert two_regions
    address = ray.get_runtime_context().gcs_address
    healthy = doctor("--address", address)
    assert healthy.returncode == 0, healthy.stderr
    assert "2 nodes" in healthy.stdout
    unlabelled = doctor("--address", address, "--region-label", "zone")
    assert unlabelled.returncode == 1
    assert "no label zone" in unlabelled.stdout
    assert "--labels zone=NAME" in unlabelled.stdout


def doctor(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crosspipe_ray", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
