"""The pytest plugin: cheap to load, skips with a reason, and its level that needs no root."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crosspipe_ray.engine import clock
from crosspipe_ray.engine.transports import Transport
from crosspipe_ray.errors import InputError

MS = 1_000_000

USES_WAN = """
import pytest

@pytest.mark.wan(latency_ms=5)
@pytest.mark.parametrize("number", [1, 2])
def test_something(wan, number):
    raise AssertionError("unreachable")
"""
NO_DEVICE = """
from pathlib import Path
from crosspipe_ray.testing.wan import requirements

requirements.DEVICE = Path("/dev/none")
requirements._capabilities = lambda: -1
"""


def test_loading_the_plugin_costs_next_to_nothing() -> None:
    script = (
        "import sys, crosspipe_ray.testing.pytest_plugin;"
        "print(*{'ray', 'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stdout.strip() == ""


def test_where_there_can_be_no_wan_tests_are_skipped_with_one_reason(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(USES_WAN)
    (tmp_path / "conftest.py").write_text(NO_DEVICE)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "--strict-markers", "-rs", "-q", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("an emulated WAN needs /dev/none") == 1
    assert "2 skipped" in process.stdout


@pytest.mark.wan(latency_ms=20, bandwidth_mbit_s=8)
def test_transports_of_this_process_have_the_links_of_the_marker(
    wan_transports: Callable[..., list[Transport]],
) -> None:
    us, near, eu = wan_transports("us", "us", "eu")
    sent, received = torch.arange(2500, dtype=torch.int32), torch.empty(2500, dtype=torch.int32)
    start_ns = clock.now_ns()
    handle = eu.irecv(received, peer=0, tag=1)
    us.isend(sent, peer=2, tag=1)
    handle.wait(timeout_s=10.0)
    assert torch.equal(sent, received)
    assert clock.now_ns() - start_ns >= 30 * MS
    assert handle.window is not None
    assert handle.window.arrive_ns - handle.window.start_ns == 30 * MS
    assert near.isend(sent, peer=0, tag=2).window is None


@pytest.mark.wan(loss=0.1)
def test_transports_of_this_process_cannot_lose_messages(
    wan_transports: Callable[..., list[Transport]],
) -> None:
    with pytest.raises(InputError, match="us->eu: loss: messages cannot be lost"):
        wan_transports("us", "eu")
