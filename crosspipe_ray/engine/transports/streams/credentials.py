"""What a rank shows to others, and what it asks them for: a certificate, and the run's token."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from crosspipe_ray.errors import ConfigError

MIN_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The same authority, name and token on all ranks; a certificate each, or one for all.

    The files are read once, when it is made, and may go then.

    Args:
        certificate: PEM file with this rank's certificate, issued for ``name``.
        key: PEM file with its private key.
        authority: PEM file with the certificate of the only authority that is trusted.
        token: the run's secret, at least 16 bytes, best ``secrets.token_bytes(32)``.
        name: the DNS name in all certificates; it needs no address.

    Attributes:
        server: for the receiving end; it asks the sender for a certificate.
        client: for the sending end; it checks certificate and name of the receiver.

    Raises:
        ConfigError: a file is missing or wrong.
        ValueError: the token is too short.
    """

    certificate: Path
    key: Path
    authority: Path
    token: bytes = field(repr=False)
    name: str = "crosspipe"
    server: ssl.SSLContext = field(init=False, repr=False, compare=False)
    client: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.token) < MIN_TOKEN_BYTES:
            raise ValueError(f"a token of {len(self.token)} bytes: at least {MIN_TOKEN_BYTES}")
        server = self._context(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_REQUIRED
        # Without them nothing but frames is ever read: a readable socket means a frame.
        server.num_tickets = 0
        object.__setattr__(self, "server", server)
        object.__setattr__(self, "client", self._context(ssl.PROTOCOL_TLS_CLIENT))

    def _context(self, protocol: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.authority)
        except OSError as error:
            files = f"{self.certificate}, {self.key}, {self.authority}"
            raise ConfigError(f"no usable certificates in {files}: {error}") from None
        return context
