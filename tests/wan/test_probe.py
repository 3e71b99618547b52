"""The network commands between Ray nodes with real sockets in between."""

import json
import sys

import pytest

from crosspipe_ray.testing.wan import Wan

# A queue that holds a whole train: TCP would take losses for a part of the link's rate.
pytestmark = [
    pytest.mark.wan(latency_ms=20, bandwidth_mbit_s=200, queue_ms=1000),
    pytest.mark.ray,
]
TIMEOUT_S = 100.0
PROBE = """
from crosspipe_ray.actors.cluster import connected
from crosspipe_ray.actors.probe import ProbeRequest, probe, regions_of_cluster
from crosspipe_ray.carriers import Carrier
from crosspipe_ray.engine.probing import ProbeSettings

settings = ProbeSettings(sizes=(1, 2**14, 2**18, 2**20), num_pings=15, num_repeats=5)
with connected("auto"):
    regions = regions_of_cluster("region")
    request = ProbeRequest(regions=regions, carriers=(Carrier(),), settings=settings)
    print(probe(request).model_dump_json())
"""


def test_the_links_of_a_real_network_are_found_and_its_nodes_looked_at(ray_regions: Wan) -> None:
    probed = ray_regions.run("us", [sys.executable, "-c", PROBE], timeout_s=TIMEOUT_S)
    links = json.loads(probed.stdout)["links"]
    assert [(link["src"], link["dst"]) for link in links] == [("eu", "us"), ("us", "eu")]
    for link in links:
        assert link["has_common_clock"]
        assert link["channel"] is None
        assert link["latency_us"]["value"] == pytest.approx(20_000, rel=0.1)
        assert link["points"][-1]["bandwidth_bytes_per_s"]["value"] == pytest.approx(25e6, rel=0.1)
    command = [sys.executable, "-m", "crosspipe_ray", "doctor", "--address", "auto"]
    report = ray_regions.run("us", command, timeout_s=TIMEOUT_S).stdout
    assert "2 nodes: " in report
