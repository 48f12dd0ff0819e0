"""The addresses and ports at the head of an IP packet, of which the rest may have been cut off.

    IPv4 │ options │ TCP, UDP or something else │ payload …      (RFC 791)
    IPv6 │ extension headers │ same             │ payload …      (RFC 8200)

What a logger or a capture file holds is often only the first bytes; a packet's length is therefore the one that its
header claims. Later fragments have no ports. `NEED_MORE` means that the bytes end before the ports do.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final

from mitmsec.core.model import Endpoint, Transport, Value
from mitmsec_redirect.records import V4_MAPPED, address_text

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION})
EXTENSIONS_LIMIT = 16  # RFC 8200 knows seven
TCP_FLAGS, TCP_OFFSET, TCP_SEQUENCE = 13, 12, 4
UDP_HEADER_BYTES = 8
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_IPV4: Final = struct.Struct("!BxHxxHxB2x4s4s")  # version and length of header, length, fragment, protocol, from, to
_IPV6: Final = struct.Struct("!4xHBx16s16s")  # length of payload, next header, from, to
_PORTS: Final = struct.Struct("!HH")


class Unread(Enum):
    """Why there is no heading."""

    FRAGMENT = "fragment"  # not the first one
    MALFORMED = "malformed"
    NEED_MORE = "need_more"
    OTHER_PROTOCOL = "other_protocol"  # neither TCP nor UDP


class Heading(Value, frozen=True):
    """From where to where, and how much."""

    transport: Transport
    source: Endpoint
    destination: Endpoint
    payload_bytes: int  # of the whole packet, however much of it is there
    tcp_flags: int = 0

    @property
    def opens(self) -> bool:
        """The first segment of a TCP connection."""
        return self.tcp_flags & (SYN | ACK | RST | FIN) == SYN


class _Network(Value, frozen=True):
    source: bytes  # 16 bytes
    destination: bytes
    protocol: int
    at: int  # of the transport header
    end: int  # of the packet, as its header claims


def read(packet: bytes) -> Heading | Unread:
    """The heading of the packet that begins with the first byte. Never raises."""
    if not packet:
        return Unread.NEED_MORE
    match packet[0] >> 4:
        case 4:
            network = _v4(packet)
        case 6:
            network = _v6(packet)
        case _:
            return Unread.MALFORMED
    return network if isinstance(network, Unread) else _transport(packet, network)


class Segment(Value, frozen=True):
    """What a TCP segment carries, as much of it as is there."""

    sequence: int
    payload: bytes


def segment(packet: bytes) -> Segment | None:
    """Of a packet that has a heading; None where that is not of TCP."""
    network = {4: _v4, 6: _v6}[packet[0] >> 4](packet)
    if isinstance(network, Unread) or network.protocol != TCP:
        return None
    payload_at = network.at + (packet[network.at + TCP_OFFSET] >> 4) * 4
    sequence = int.from_bytes(packet[network.at + TCP_SEQUENCE : network.at + TCP_SEQUENCE + 4])
    return Segment(sequence, packet[payload_at : network.end])


def datagram(packet: bytes) -> bytes | None:
    """What a datagram carries, as much of it as is there; None as of `segment`, where the packet is not of UDP."""
    network = {4: _v4, 6: _v6}[packet[0] >> 4](packet)
    if isinstance(network, Unread) or network.protocol != UDP:
        return None
    return packet[network.at + UDP_HEADER_BYTES : network.end]


def _v4(packet: bytes) -> _Network | Unread:
    if len(packet) < _IPV4.size:
        return Unread.NEED_MORE
    first, length, fragment, protocol, source, destination = _IPV4.unpack_from(packet)
    at = (first & 0x0F) * 4
    if not _IPV4.size <= at <= length:
        return Unread.MALFORMED
    if fragment & 0x1FFF:
        return Unread.FRAGMENT
    return _Network(V4_MAPPED + source, V4_MAPPED + destination, protocol, at, length)


def _v6(packet: bytes) -> _Network | Unread:
    if len(packet) < _IPV6.size:
        return Unread.NEED_MORE
    length, following, source, destination = _IPV6.unpack_from(packet)
    at, end = _IPV6.size, _IPV6.size + length
    for _ in range(EXTENSIONS_LIMIT):
        if following not in EXTENSIONS:
            return _Network(source, destination, following, at, end)
        if at + 8 > end:
            return Unread.MALFORMED
        if at + 8 > len(packet):
            return Unread.NEED_MORE
        if following == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4]) & 0xFFF8:
            return Unread.FRAGMENT
        following, at = packet[at], at + _extension_bytes(following, packet[at + 1])
    return Unread.MALFORMED


def _extension_bytes(kind: int, field: int) -> int:
    if kind == FRAGMENT:
        return 8
    return (field + 2) * 4 if kind == AUTHENTICATION else (field + 1) * 8


def _transport(packet: bytes, network: _Network) -> Heading | Unread:
    if network.protocol not in (TCP, UDP):
        return Unread.OTHER_PROTOCOL
    is_tcp = network.protocol == TCP
    header_bytes = 20 if is_tcp else UDP_HEADER_BYTES
    if network.at + header_bytes > network.end:
        return Unread.MALFORMED
    if network.at + header_bytes > len(packet):
        return Unread.NEED_MORE
    source_port, destination_port = _PORTS.unpack_from(packet, network.at)
    if is_tcp:
        header_bytes = (packet[network.at + TCP_OFFSET] >> 4) * 4
        if not 20 <= header_bytes <= network.end - network.at:
            return Unread.MALFORMED
    return Heading(
        transport=Transport.TCP if is_tcp else Transport.UDP,
        source=Endpoint(address=address_text(network.source), port=source_port),
        destination=Endpoint(address=address_text(network.destination), port=destination_port),
        payload_bytes=network.end - network.at - header_bytes,
        tcp_flags=packet[network.at + TCP_FLAGS] if is_tcp else 0,
    )
