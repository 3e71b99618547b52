"""Fixtures for tests on an emulated WAN; pytest finds them wherever crosspipe_ray is installed.

    @pytest.mark.wan(latency_ms=50, bandwidth_mbit_s=1000, loss=0.001, jitter_ms=5)
    def test_something(wan):
        assert wan.run("us", ["my-client", wan.address("eu")], timeout_s=30).returncode == 0

The arguments of the marker are those of ``crosspipe_ray.testing.wan.mesh``, with ``regions`` for
the names, by default ``("us", "eu")``; or a single ``WanSpec``. Imports wait until a fixture needs
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from crosspipe_ray.engine.transports import Transport
    from crosspipe_ray.testing.wan import Wan, WanSpec

_REGIONS = ("us", "eu")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers",
        "wan(regions=('us', 'eu'), latency_ms=0, bandwidth_mbit_s=None, jitter_ms=0, loss=0, "
        "queue_ms=100): the links of the fixtures wan, ray_regions and wan_transports",
    )


@pytest.fixture
def wan(request: pytest.FixtureRequest) -> Iterator[Wan]:
    """Regions as network namespaces of this machine; skips where that needs more rights."""
    from crosspipe_ray.testing.wan import emulated_wan, missing

    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with emulated_wan(_marked_spec(request)) as up:
        yield up


@pytest.fixture
def ray_regions(wan: Wan) -> Wan:
    """The same with a real Ray node on every host, labelled ``region=...``; takes seconds."""
    pytest.importorskip("ray", reason="ray_regions needs ray")
    return wan.start_ray()


@pytest.fixture
def wan_transports(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., list[Transport]]]:
    """Needs no root: called with the region of each rank, gives the transport of each rank."""
    from crosspipe_ray.testing.shaped import shaped_transports

    made: list[Transport] = []

    def make(*rank_regions: str) -> list[Transport]:
        transports = shaped_transports(_marked_spec(request), rank_regions, clock_dir=tmp_path)
        made.extend(transports)
        return transports

    yield make
    for transport in made:
        transport.close()


def _marked_spec(request: pytest.FixtureRequest) -> WanSpec:
    from crosspipe_ray.testing.wan import WanSpec, mesh

    marker = request.node.get_closest_marker("wan")
    if marker is None:
        return mesh(*_REGIONS)
    if marker.args:
        [spec] = marker.args
        assert isinstance(spec, WanSpec), "the marker wan takes keywords, or one WanSpec"
        return spec
    settings = dict(marker.kwargs)
    return mesh(*settings.pop("regions", _REGIONS), **settings)
