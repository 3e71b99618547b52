"""IPv4 packets as a TUN device with IFF_VNET_HDR gives them: up to 64 KiB of TCP at a time.

Such a packet is many segments on a real wire (TCP segmentation offload), so a loss takes a piece
out of it: what is left goes on as smaller packets with mended headers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

# struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_VNET = struct.Struct("=BBHHHH")
VNET_BYTES = _VNET.size
MAX_BYTES = VNET_BYTES + 65_535
_NO_GSO = 0
_FIN_OR_PSH = 0x09
_CWR = 0x80


def destination(packet: bytes) -> bytes:
    """IPv4 address that a packet goes to, 4 bytes; empty for anything but IPv4."""
    return packet[VNET_BYTES + 16 : VNET_BYTES + 20] if packet[VNET_BYTES] >> 4 == 4 else b""


def num_segments(packet: bytes) -> int:
    """Packets that would be on a wire."""
    segment_bytes: int = _VNET.unpack_from(packet)[3]
    if not segment_bytes:
        return 1
    payload_bytes = len(packet) - VNET_BYTES - _headers_bytes(packet)
    return max(1, -(-payload_bytes // segment_bytes))


def without(packet: bytes, lost: Sequence[int]) -> list[bytes]:
    """What is left of a packet when some of its segments are lost, in order.

    Args:
        packet: of one or several segments.
        lost: indices of segments, ascending.
    """
    borders = [-1, *lost, num_segments(packet)]
    runs = [(before + 1, after) for before, after in pairwise(borders)]
    return [_segments(packet, first, end) for first, end in runs if first < end]


def _headers_bytes(packet: bytes) -> int:
    ip_bytes = (packet[VNET_BYTES] & 0x0F) * 4
    return ip_bytes + (packet[VNET_BYTES + ip_bytes + 12] >> 4) * 4


def _segments(packet: bytes, first: int, end: int) -> bytes:
    """The segments from ``first`` to before ``end`` of a TCP packet, as a packet."""
    flags, gso_type, headers_hint, segment_bytes, *checksum = _VNET.unpack_from(packet)
    ip_bytes = (packet[VNET_BYTES] & 0x0F) * 4
    body = VNET_BYTES + _headers_bytes(packet)
    payload = packet[body + first * segment_bytes : body + end * segment_bytes]
    ip = bytearray(packet[VNET_BYTES : VNET_BYTES + ip_bytes])
    tcp = bytearray(packet[VNET_BYTES + ip_bytes : body])
    _mend_tcp(tcp, skipped_bytes=first * segment_bytes, is_first=first == 0)
    if end < num_segments(packet):
        tcp[13] &= ~_FIN_OR_PSH
    tcp[16:18] = _sum16(ip[12:20] + struct.pack("!HH", 6, len(tcp) + len(payload))).to_bytes(
        2, "big"
    )
    _mend_ip(ip, num_bytes=ip_bytes + len(tcp) + len(payload), skipped=first)
    several = end - first > 1
    vnet = _VNET.pack(
        flags,
        gso_type if several else _NO_GSO,
        headers_hint,
        segment_bytes if several else 0,
        *checksum,
    )
    return b"".join((vnet, ip, tcp, payload))


def _mend_tcp(tcp: bytearray, *, skipped_bytes: int, is_first: bool) -> None:
    sequence = int.from_bytes(tcp[4:8], "big") + skipped_bytes
    tcp[4:8] = (sequence & 0xFFFF_FFFF).to_bytes(4, "big")
    if not is_first:
        tcp[13] &= ~_CWR


def _mend_ip(ip: bytearray, *, num_bytes: int, skipped: int) -> None:
    identification = int.from_bytes(ip[4:6], "big") + skipped
    ip[2:4] = num_bytes.to_bytes(2, "big")
    ip[4:6] = (identification & 0xFFFF).to_bytes(2, "big")
    ip[10:12] = b"\0\0"
    ip[10:12] = (0xFFFF - _sum16(ip)).to_bytes(2, "big")


def _sum16(data: bytes | bytearray) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
