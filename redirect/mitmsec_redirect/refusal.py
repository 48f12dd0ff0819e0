"""What a remote would have answered, had it refused: a reset for a SYN, "port unreachable" for a datagram.

A program whose SYN is merely dropped waits for two minutes. RFC 9293 §3.10.7.1 (a reset), RFC 1122 §3.2.2.1 and
RFC 4443 §3.1 (unreachable, with as much of the datagram as they allow).
"""

from __future__ import annotations

import struct
from typing import Final

from mitmsec_redirect.packet import TCP, UDP, Packet

RST_ACK, SYN, FIN = 0x14, 0x02, 0x01
ICMP, ICMPV6 = 1, 58
UNREACHABLE_V4_MOST, UNREACHABLE_V6_MOST = 576, 1280  # bytes of the whole answer
TTL: Final = 64


def refusal(data: bytes, packet: Packet) -> bytes | None:
    """The answer to `packet`, which is all of `data`, in its destination's name; None: it is neither TCP nor UDP."""
    if packet.protocol == TCP and packet.tcp_flags is not None:
        return _reset(data, packet)
    return _unreachable(data, packet) if packet.protocol == UDP else None


def _reset(data: bytes, packet: Packet) -> bytes | None:
    header = data[packet.transport : packet.transport + 20]
    if len(header) < 20:
        return None
    source, destination, sequence = struct.unpack_from("!HHI", header)
    payload = max(0, packet.length - packet.transport - (header[12] >> 4) * 4)
    taken = payload + bool(header[13] & SYN) + bool(header[13] & FIN)
    segment = struct.pack(
        "!HHIIBBHHH", destination, source, 0, (sequence + taken) & 0xFFFFFFFF, 5 << 4, RST_ACK, 0, 0, 0
    )
    return _answer(packet, TCP, segment, checksum_at=16)


def _unreachable(data: bytes, packet: Packet) -> bytes:
    if packet.version == 4:
        quoted = data[: UNREACHABLE_V4_MOST - 28]
        return _answer(packet, ICMP, struct.pack("!BBHI", 3, 3, 0, 0) + quoted, checksum_at=2)
    quoted = data[: UNREACHABLE_V6_MOST - 48]
    return _answer(packet, ICMPV6, struct.pack("!BBHI", 1, 4, 0, 0) + quoted, checksum_at=2)


def _answer(packet: Packet, protocol: int, body: bytes, checksum_at: int) -> bytes:
    """`body` on its way back, its checksum put in."""
    pseudo = b"" if protocol == ICMP else packet.destination + packet.source + struct.pack("!II", len(body), protocol)
    body = body[:checksum_at] + checksum(pseudo + body) + body[checksum_at + 2 :]
    if packet.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, TTL) + packet.destination + packet.source + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, TTL, protocol, 0)
    header += packet.destination + packet.source
    return header[:10] + checksum(header) + header[12:] + body


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071), for two bytes that are zero in `data`."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data.ljust((len(data) + 1) // 2 * 2, b"\0"))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
