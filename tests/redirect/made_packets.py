"""IP packets for tests: made by hand, and real ones from a Linux kernel (tests/data/packets.pcap)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

TCP, UDP, ICMP = 6, 17, 1
OUTBOUND_VALID = 0x02 | 0x20 | 0x40 | 0x80  # flags of an address record: outbound, all checksums valid
PCAP = Path(__file__).parents[1] / "data/packets.pcap"

V4 = (bytes([10, 0, 0, 1]), bytes([192, 0, 2, 7]))
V6 = (bytes.fromhex("fd77" + 27 * "0" + "1"), bytes.fromhex("20010db8" + 23 * "0" + "7"))


def captured() -> list[bytes]:
    """Seen on a veth: handshakes, data, two GSO packets, fragments, options, extension headers, ICMP, IGMP, MLD."""
    data, at, packets = PCAP.read_bytes(), 24, []
    while at < len(data):
        (size,) = struct.unpack_from("<8xI4x", data, at)
        packets.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    return packets


def checksum(data: bytes) -> int:
    """The internet checksum of RFC 1071, in the slow and plain way."""
    total = 0
    for high, low in zip(data[::2], (data + b"\0")[1::2], strict=False):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def with_checksum(source: bytes, destination: bytes, protocol: int, segment: bytes) -> bytes:
    at = 16 if protocol == TCP else 6
    blank = segment[:at] + bytes(2) + segment[at + 2 :]
    pseudo = source + destination + struct.pack("!II", len(segment), protocol)
    return blank[:at] + checksum(pseudo + blank).to_bytes(2) + blank[at + 2 :]


def segment(source: bytes, destination: bytes, ports: tuple[int, int], flags: int = 0x10, data: bytes = b"") -> bytes:
    return with_checksum(source, destination, TCP, struct.pack("!HHIIBBHHH", *ports, 1, 2, 0x50, flags, 9, 0, 0) + data)


def datagram(source: bytes, destination: bytes, ports: tuple[int, int], data: bytes = b"") -> bytes:
    return with_checksum(source, destination, UDP, struct.pack("!HHHH", *ports, 8 + len(data), 0) + data)


def v4(
    source: bytes,
    destination: bytes,
    payload: bytes,
    protocol: int = TCP,
    *,
    options: bytes = b"",
    fragment: int = 0,
    identification: int = 7,
) -> bytes:
    """`options` must fill whole words; `fragment` is the field of flags and offset."""
    words = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), identification, fragment, 64, protocol, 0
    )
    head += source + destination + options
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + payload


def v6(
    source: bytes,
    destination: bytes,
    payload: bytes,
    protocol: int = TCP,
    extensions: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """`extensions` are kinds and bodies; a body begins after the byte that names what follows."""
    kinds = [*(kind for kind, _ in extensions), protocol]
    chain = b"".join(bytes([after]) + body for after, (_, body) in zip(kinds[1:], extensions, strict=True))
    head = struct.pack("!IHBB", 6 << 28, len(chain) + len(payload), kinds[0], 64)
    return head + source + destination + chain + payload


def ip(source: bytes, destination: bytes, payload: bytes, protocol: int = TCP) -> bytes:
    return (v4 if len(source) == 4 else v6)(source, destination, payload, protocol)


def tcp(source: bytes, destination: bytes, ports: tuple[int, int], flags: int = 0x10, data: bytes = b"") -> bytes:
    return ip(source, destination, segment(source, destination, ports, flags, data))


OPTIONS = bytes([1, 1, 1, 0])  # three times "no operation", end
PADDED = bytes([0, 1, 4, 0, 0, 0, 0])  # body of hop-by-hop or destination options: eight bytes with the first
ROUTING = bytes([0, 59, 0, 0, 0, 0, 0])  # nothing left to visit
AH = bytes([4, 0, 0]) + bytes(20)


def fragment_body(offset: int, more: bool, identification: int = 7) -> bytes:
    return struct.pack("!BHI", 0, offset | more, identification)


def record(flags: int = OUTBOUND_VALID) -> bytearray:
    """A WINDIVERT_ADDRESS."""
    address = bytearray(80)
    address[10] = flags
    return address


# --- strategies -------------------------------------------------------------------------------------------------------
PORT = st.sampled_from([1, 80, 443, 8080, 40000, 40001, 40007, 50000, 51999, 52000, 65535]) | st.integers(0, 0xFFFF)
ADDRESS_V4 = st.sampled_from([V4[0], V4[1], bytes(4), b"\xff" * 4]) | st.binary(min_size=4, max_size=4)
ADDRESS_V6 = st.sampled_from([V6[0], V6[1], bytes(16), bytes(10) + b"\xff\xff\1\2\3\4"]) | st.binary(
    min_size=16, max_size=16
)
_EXTENSION = st.sampled_from([(0, PADDED), (60, PADDED), (43, ROUTING), (51, AH), (44, fragment_body(0, False))])


@st.composite
def _payloads(draw: st.DrawFn, source: bytes, destination: bytes) -> tuple[int, bytes]:
    ports, data = (draw(PORT), draw(PORT)), draw(st.binary(max_size=40))
    match protocol := draw(st.sampled_from([TCP, TCP, TCP, UDP, ICMP, 135, 59])):
        case 6:
            return protocol, segment(source, destination, ports, draw(st.integers(0, 63)), data)
        case 17:
            return protocol, datagram(source, destination, ports, data)
        case _:
            return protocol, data


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Well-formed packets, most of them TCP, with options, extension headers and fragments."""
    if draw(st.booleans()):
        source, destination = draw(ADDRESS_V4), draw(ADDRESS_V4)
        protocol, payload = draw(_payloads(source, destination))
        field = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 3, 0x2003]))
        return v4(source, destination, payload, protocol, options=draw(st.sampled_from([b"", OPTIONS])), fragment=field)
    source, destination = draw(ADDRESS_V6), draw(ADDRESS_V6)
    protocol, payload = draw(_payloads(source, destination))
    extensions = draw(st.lists(_EXTENSION, max_size=3) | st.just([(44, fragment_body(1480, draw(st.booleans())))]))
    return v6(source, destination, payload, protocol, extensions)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A packet, made or real, of which some bytes are others, and which may end early."""
    packet = bytearray(draw(packets() | st.sampled_from(captured())))
    for _ in range(draw(st.integers(0, 4))):
        packet[draw(st.integers(0, min(len(packet), 60) - 1))] = draw(st.integers(0, 255))
    return bytes(packet[: draw(st.integers(0, len(packet)))] if draw(st.booleans()) else packet)
