"""Certificate and token of one run: made by whoever starts it, and handed to its ranks.

The certificate is its own authority and serves all ranks of the run: whoever has its key, and the
token, is one of them. Both end with the run.
"""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from crosspipe_ray.engine.transports.streams.credentials import MIN_TOKEN_BYTES, Credentials
from crosspipe_ray.errors import ConfigError

_AUTHORITY, _CERTIFICATE, _KEY, _TOKEN = _FILES = (
    "authority.pem", "rank.pem", "rank.key", "token",
)  # fmt: skip
_OPENSSL = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 "
    f"-subj /CN=crosspipe -addext subjectAltName=DNS:crosspipe -keyout {_KEY} -out {_CERTIFICATE}"
)
_TIMEOUT_S = 30.0
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class RunSecrets:
    """What makes a process one of the run's ranks; travels to them, and into no file that stays.

    Attributes:
        files: contents by name.
    """

    files: dict[str, bytes] = field(repr=False)

    @classmethod
    def new(cls) -> RunSecrets:
        """Those of a new run.

        Raises:
            ConfigError: this machine has no ``openssl`` command, or one that fails.
        """
        with tempfile.TemporaryDirectory(prefix="crosspipe-") as folder:
            issue(Path(folder))
            return cls.read(Path(folder))

    @classmethod
    def read(cls, folder: Path) -> RunSecrets:
        """Those in a folder.

        Raises:
            ConfigError: a file is missing or wrong.
        """
        try:
            found = cls({name: (folder / name).read_bytes() for name in _FILES})
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: {error.strerror}; a folder of credentials has "
                f"{', '.join(_FILES)}: make one with "
                "`python -m crosspipe_ray.engine.transports.streams FOLDER`"
            ) from None
        _credentials(folder)  # says now, and of this folder, what is wrong
        return found

    def credentials(self) -> Credentials:
        """Loaded through files that nobody else can read, and that are gone on return."""
        with tempfile.TemporaryDirectory(prefix="crosspipe-") as name:
            folder = Path(name)
            for file, content in self.files.items():
                (folder / file).write_bytes(content)
            return _credentials(folder)


def issue(folder: Path) -> None:
    """Writes the files of a new run into an existing folder, readable by their owner only.

    Raises:
        ConfigError: this machine has no ``openssl`` command, or one that fails.
    """
    try:
        subprocess.run(
            _OPENSSL.split(), cwd=folder, check=True, capture_output=True, timeout=_TIMEOUT_S
        )
    except FileNotFoundError:
        raise ConfigError(
            "streams: no `openssl` command here to make the run's certificate; install openssl"
        ) from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"streams: openssl makes no certificate: {error}") from None
    (folder / _AUTHORITY).write_bytes((folder / _CERTIFICATE).read_bytes())
    (folder / _TOKEN).write_text(secrets.token_hex(_TOKEN_BYTES))
    for name in _FILES:
        (folder / name).chmod(0o600)


def _credentials(folder: Path) -> Credentials:
    try:
        return Credentials(
            certificate=folder / _CERTIFICATE,
            key=folder / _KEY,
            authority=folder / _AUTHORITY,
            token=bytes.fromhex((folder / _TOKEN).read_text()),
        )
    except ValueError:
        raise ConfigError(
            f"{folder / _TOKEN}: a token is {2 * MIN_TOKEN_BYTES} or more hexadecimal digits"
        ) from None
