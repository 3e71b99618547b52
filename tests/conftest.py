"""Fixtures of more than one folder."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.oracle import Outcome


@pytest.fixture(scope="session", autouse=True)
def hears_ctrl_c() -> None:
    """A shell in the background has its children ignore Ctrl-C, and they theirs, in turn."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's dataset."""
    from tests.contract.oracle import prepare_data  # here, so that planning is tested without torch

    return prepare_data(tmp_path_factory.mktemp("oracle"))


@pytest.fixture(scope="session")
def reference(data: Path) -> Outcome:
    """The oracle's run by plain PyTorch."""
    from tests.contract.oracle import plain_pytorch

    return plain_pytorch(data)
