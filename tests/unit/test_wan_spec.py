"""The YAML of an emulated WAN: what it means, and what is refused in one line."""

from pathlib import Path

import pytest

from crosspipe_ray.errors import InputError
from crosspipe_ray.testing.wan import LinkSettings, load_spec, mesh

TWO_REGIONS = """
regions:
  - {name: us, num_hosts: 2}
  - {name: eu-west}
links:
  - {src: us, dst: eu-west, latency_ms: 40, bandwidth_mbit_s: 800, both_ways: false}
  - {src: eu-west, dst: us, latency_ms: 60, both_ways: false}
"""


def test_hosts_have_names_and_addresses_by_region(tmp_path: Path) -> None:
    file = tmp_path / "wan.yaml"
    file.write_text(TWO_REGIONS)
    spec = load_spec(file)
    assert [(host.name, host.region, host.address) for host in spec.hosts] == [
        ("us-0", "us", "10.77.1.1"),
        ("us-1", "us", "10.77.1.2"),
        ("eu-west", "eu-west", "10.77.2.1"),
    ]
    assert spec.directed_links["us", "eu-west"].latency_ms == 40
    assert spec.directed_links["eu-west", "us"].latency_ms == 60
    assert spec.subnet("eu-west") == "10.77.2.0/24"


def test_settings_become_nanoseconds_and_bytes() -> None:
    shape = LinkSettings(latency_ms=1.5, bandwidth_mbit_s=80, jitter_ms=0.1, queue_ms=2).shape
    assert (shape.latency_ns, shape.jitter_ns, shape.queue_ns) == (1_500_000, 100_000, 2_000_000)
    assert shape.bytes_per_s == 10_000_000


def test_a_mesh_links_every_pair_both_ways() -> None:
    links = mesh("us", "eu", "ap", latency_ms=7).directed_links
    assert len(links) == 6
    assert {link.latency_ms for link in links.values()} == {7}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("regions: [{name: us, hosts: 2}]", "regions.0.hosts: unknown field; did you mean"),
        ("regions: [{name: us}, {name: eu}]", "links: none from us to eu"),
        ("regions: [{name: us}, {name: us}]", "the name us is given to two regions or hosts"),
        (
            "regions: [{name: us, num_hosts: 2}, {name: us-1}]",
            "the name us-1 is given to two regions or hosts",
        ),
        ("regions: [{name: US}]", "regions.0.name: string should match"),
        ("{regions: [{name: us}], links: [{src: us, dst: eu}]}", "us-eu: no region 'eu'"),
        ("{regions: [{name: us}], links: [{src: us, dst: us}]}", "given twice or leads nowhere"),
        (
            "{regions: [{name: us}], links: [{src: us, dst: us, loss: 2}]}",
            "links.0.loss: input should be less than or equal to 1",
        ),
        ("[", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "wan.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as refusal:
        load_spec(file)
    message = str(refusal.value)
    assert message.startswith(f"{file}: ")
    assert expected in message
    assert "\n" not in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_spec(tmp_path / "none.yaml")


def test_the_example_is_a_wan() -> None:
    example = Path(__file__).parents[2] / "cluster_configs" / "wan.yaml"
    assert len(load_spec(example).hosts) == 4
