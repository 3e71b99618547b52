"""A TUN device: packets that a namespace routes into it can be read here, and the other way."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

DEVICE = Path("/dev/net/tun")

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02


def open_tun(name: str) -> int:
    """Makes a device in the network namespace of this thread.

    It hands over TCP in packets of up to 64 KiB, each behind a ``virtio_net_hdr``: with packets of
    1500 bytes, Python would be the bottleneck. The device is gone when the descriptor is closed.

    Returns:
        A descriptor that does not block.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
