"""One local Ray cluster with nodes for two regions, shared by all tests of this folder that can."""

from collections.abc import Iterator

import pytest

from crosspipe_ray.actors.cluster import local_regions

REGIONS = ("us", "us", "eu", "eu")


@pytest.fixture(scope="session")
def two_regions() -> Iterator[tuple[str, ...]]:
    """Regions of four ranks on a running cluster."""
    with local_regions(REGIONS, label="region"):
        yield REGIONS
