"""Ways for tensors to go from rank to rank: one interface, one contract test for all of them."""

from crosspipe_ray.engine.transports.base import (
    EventHandle,
    Handle,
    HandleBook,
    Transport,
    TransportTimeout,
    Window,
)
from crosspipe_ray.engine.transports.collective import CollectiveTransport
from crosspipe_ray.engine.transports.communicators import host_store, join_store
from crosspipe_ray.engine.transports.loopback import LoopbackHub, LoopbackTransport
from crosspipe_ray.engine.transports.mixed import MixedTransport
from crosspipe_ray.engine.transports.shaped import LinkShape, ShapedTransport
from crosspipe_ray.engine.transports.staged import StagedTransport

__all__ = [
    "CollectiveTransport",
    "EventHandle",
    "Handle",
    "HandleBook",
    "LinkShape",
    "LoopbackHub",
    "LoopbackTransport",
    "MixedTransport",
    "ShapedTransport",
    "StagedTransport",
    "Transport",
    "TransportTimeout",
    "Window",
    "host_store",
    "join_store",
]
