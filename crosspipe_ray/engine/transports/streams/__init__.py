"""Tensors over k encrypted, authenticated connections per lane, each resumed when it is lost."""

from crosspipe_ray.engine.transports.streams.connection import Address
from crosspipe_ray.engine.transports.streams.credentials import Credentials
from crosspipe_ray.engine.transports.streams.door import Door
from crosspipe_ray.engine.transports.streams.issuing import RunSecrets
from crosspipe_ray.engine.transports.streams.transport import (
    StreamsTransport,
    exchange_addresses,
)

__all__ = ["Address", "Credentials", "Door", "RunSecrets", "StreamsTransport", "exchange_addresses"]
