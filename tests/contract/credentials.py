"""Credentials for tests and benchmarks, made by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from crosspipe_ray.engine.transports.streams import Credentials

TOKEN = b"the token of all tests, not secret"
_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc"
_SIGNER = "-CA authority.pem -CAkey authority.key"
_COMMANDS = (
    f"req -x509 {_NEW_KEY} -keyout authority.key -out authority.pem -days 7 -subj /CN=authority",
    f"req {_NEW_KEY} -keyout rank.key -out rank.csr -subj /CN=rank -addext subjectAltName=DNS:NAME",
    f"x509 -req -in rank.csr -out rank.pem -days 7 -copy_extensions copy {_SIGNER}",
)


def make_credentials(folder: Path, *, token: bytes = TOKEN, name: str = "crosspipe") -> Credentials:
    """Those in a folder; in a new one, an authority of its own and a certificate by it."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for command in _COMMANDS:
            arguments = command.replace("NAME", name).split()
            subprocess.run(
                ["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30
            )
    return Credentials(
        certificate=folder / "rank.pem",
        key=folder / "rank.key",
        authority=folder / "authority.pem",
        token=token,
    )
