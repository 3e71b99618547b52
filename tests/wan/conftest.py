"""Everything here needs a WAN of namespaces; where there can be none, one reason is given."""

import pytest

from crosspipe_ray.testing.wan import missing


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
