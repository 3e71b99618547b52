"""TCP packets of many segments, as a TUN device gives them, with pieces taken out."""

import struct

import pytest

from crosspipe_ray.testing.wan.packets import VNET_BYTES, destination, num_segments, without

SEGMENT = 1000
ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80
SOURCE, TARGET = bytes([10, 77, 1, 1]), bytes([10, 77, 2, 1])


def ones_complement_sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_packet(payload: bytes, *, sequence: int = 0xFFFF_FF00, flags: int = ACK) -> bytes:
    """With 12 bytes of TCP options, and a partial checksum as the kernel leaves it."""
    several = len(payload) > SEGMENT
    vnet = struct.pack("=BBHHHH", 1, int(several), 52, SEGMENT if several else 0, 20, 16)
    tcp_bytes = 32 + len(payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + tcp_bytes, 77, 0x4000, 64, 6, 0) + SOURCE + TARGET
    ip = ip[:10] + struct.pack("!H", 0xFFFF - ones_complement_sum(ip)) + ip[12:]
    partial = ones_complement_sum(SOURCE + TARGET + struct.pack("!HH", 6, tcp_bytes))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, sequence, 9, 8 << 4, flags, 500, partial, 0) + bytes(12)
    return vnet + ip + tcp + payload


def udp_packet() -> bytes:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 64, 17, 0) + SOURCE + TARGET
    return bytes(VNET_BYTES) + ip + struct.pack("!HHHH", 1, 2, 9, 0) + b"x"


def test_destination_is_known_for_ipv4_only() -> None:
    assert destination(udp_packet()) == TARGET
    assert destination(bytes(VNET_BYTES) + b"\x60" + bytes(60)) == b""


@pytest.mark.parametrize(
    ("num_bytes", "expected"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (3000, 3), (60_001, 61)]
)
def test_segments_are_counted_as_on_a_wire(num_bytes: int, expected: int) -> None:
    assert num_segments(tcp_packet(bytes(num_bytes))) == expected


def test_other_packets_are_one_segment_and_lost_as_a_whole() -> None:
    assert num_segments(udp_packet()) == 1
    assert without(udp_packet(), [0]) == []


def test_what_is_left_are_the_packets_that_the_kernel_would_have_made() -> None:
    payload = bytes(index % 251 for index in range(4 * SEGMENT + 300))
    packet = tcp_packet(payload, flags=ACK | PSH | FIN | CWR)
    first, last = without(packet, [1, 2])
    assert first == _with_id(77, tcp_packet(payload[:SEGMENT], flags=ACK | CWR))
    shifted = (0xFFFF_FF00 + 3 * SEGMENT) & 0xFFFF_FFFF
    rest = tcp_packet(payload[3 * SEGMENT :], sequence=shifted, flags=ACK | PSH | FIN)
    assert last == _with_id(80, rest)


def test_losing_all_segments_leaves_nothing() -> None:
    assert without(tcp_packet(bytes(2500)), [0, 1, 2]) == []


def _with_id(identification: int, packet: bytes) -> bytes:
    """The packet with another IPv4 identification, and the checksum that belongs to it."""
    ip = bytearray(packet[VNET_BYTES : VNET_BYTES + 20])
    ip[4:6] = identification.to_bytes(2, "big")
    ip[10:12] = b"\0\0"
    ip[10:12] = (0xFFFF - ones_complement_sum(bytes(ip))).to_bytes(2, "big")
    return packet[:VNET_BYTES] + bytes(ip) + packet[VNET_BYTES + 20 :]
