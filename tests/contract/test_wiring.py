"""What stops a rank from being wired, and that nothing of it is left then."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosspipe_ray.carriers import Carrier, uniform
from crosspipe_ray.engine.transports import host_store
from crosspipe_ray.engine.transports.streams import RunSecrets, issuing
from crosspipe_ray.engine.transports.streams.issuing import issue
from crosspipe_ray.engine.wiring import Wiring, connected
from crosspipe_ray.errors import ConfigError, CrosspipeError, RunError

CPU = torch.device("cpu")


def wiring(transport: Carrier, *, timeout_s: float = 0.5) -> Wiring:
    return Wiring(num_ranks=2, carriers=uniform(2, transport), lanes=[(0, 1)], timeout_s=timeout_s)


def failure(tried: Wiring) -> CrosspipeError:
    store = host_store("127.0.0.1", timeout_s=tried.timeout_s)
    with pytest.raises(CrosspipeError) as caught:
        connected(tried, 0, store=store, device=CPU)
    assert [each.name for each in threading.enumerate() if "transport" in each.name] == []
    assert "\n" not in str(caught.value)
    return caught.value


def test_objects_need_ray() -> None:
    error = failure(wiring(Carrier("object_store")))
    assert isinstance(error, ConfigError)
    assert str(error).startswith("transport object_store needs Ray; without it: collective or")


def test_streams_need_credentials() -> None:
    assert "the run has no credentials" in str(failure(wiring(Carrier("streams"))))


def test_a_rank_that_never_comes_is_an_error() -> None:
    streams = replace(wiring(Carrier("streams")), secrets=RunSecrets.new())
    error = failure(streams)
    assert isinstance(error, RunError)
    assert "a rank's address is missing" in str(error)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        streams = replace(wiring(Carrier("streams")), secrets=RunSecrets.new(), streams_port=port)
        error = failure(streams)
    assert isinstance(error, ConfigError)
    assert f"cluster.streams_port: rank 0 cannot listen on 127.0.0.1:{port}: " in str(error)


def test_secrets_do_not_show() -> None:
    secrets = RunSecrets.new()
    shown = repr(replace(wiring(Carrier("streams")), secrets=secrets)) + repr(secrets)
    token = secrets.files["token"].decode()
    assert len(token) == 64
    assert token not in shown
    assert "PRIVATE" not in shown


def test_runs_have_credentials_of_their_own() -> None:
    first, second = RunSecrets.new().files, RunSecrets.new().files
    assert all(first[name] != second[name] for name in first)


def test_credentials_do_not_stay_in_files_while_a_rank_waits_for_others() -> None:
    credentials = RunSecrets.new().credentials()
    assert not credentials.key.parent.exists()
    assert credentials.client.get_ca_certs()


def test_credentials_are_readable_by_their_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, modes = RunSecrets.new(), []

    def load(folder: Path) -> None:
        modes.append(folder.stat().st_mode & 0o077)

    monkeypatch.setattr(issuing, "_credentials", load)
    secrets.credentials()
    assert modes == [0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("authority.pem", "nothing", "no usable certificates in {folder}/rank.pem, {folder}/rank"),
        ("rank.key", "nothing", "no usable certificates in {folder}/rank.pem, {folder}/rank.key"),
        ("token", "ab", "{folder}/token: a token is 32 or more hexadecimal digits"),
        ("token", "zz" * 32, "{folder}/token: a token is 32 or more hexadecimal digits"),
        ("token", None, "{folder}/token: No such file or directory; a folder of credentials has"),
    ],
)
def test_wrong_credentials_name_the_file_of_the_user(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    issue(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        RunSecrets.read(tmp_path)
    assert str(caught.value).startswith(message.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
