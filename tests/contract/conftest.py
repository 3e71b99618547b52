"""Credentials of a run, and those of strangers."""

from __future__ import annotations

import pytest

from crosspipe_ray.engine.transports.streams import Credentials
from tests.contract.credentials import make_credentials


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return make_credentials(tmp_path_factory.mktemp("streams") / "run")


@pytest.fixture(scope="session")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Those of another authority."""
    return make_credentials(tmp_path_factory.mktemp("streams") / "strange")
