"""Where the addresses, ports and flags of one IP packet lie.

A packet is whole when it comes from a WinDivert handle, so there are two outcomes: `Packet`, or `Malformed` with its
flaw. No bytes raise. Lengths are believed only as far as they fit into each other:

    buffer ──┬───────────┬────────────┬──────────────┬──────────┬─── end of the batch
             │ IP header │ extensions │ transport …  │  next    │
             └─ offset   └─ IHL       └─ transport   └─ offset + length

IPv4 options and IPv6 extension headers are walked over, never read. A later fragment has no transport header: what
stands where one would be is payload, so its ports are None.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum, unique
from typing import Final

from mitmsec.core.model import Value

type Buffer = bytes | bytearray | memoryview  # a memoryview of format "B"

TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS = 0, 43, 44, 51, 60
EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS})
EXTENSIONS_MOST = 16  # RFC 8200 §4.1 knows seven places; nothing that a stack sends comes near

IPV4_LEAST, IPV6_HEADER, PORTS = 20, 40, 4
PLAIN_V4: Final = 0x45  # version and length of an IPv4 header without options
TCP_FLAGS_AT = 13  # from the transport header on
_IPV4: Final = struct.Struct("!BxHHHxB2x4s4s")  # IHL, length, identification, fragment, protocol, source, destination
_IPV6: Final = struct.Struct("!4xHBx16s16s")  # payload length, next header, source, destination
_PLAIN: Final = struct.Struct("!2xH2xHxB2x4s4sHH")  # IPv4 without options, ports included
_IPV6_FRAGMENT: Final = struct.Struct("!BxHI")  # next header, offset and more, identification
_PORTS: Final = struct.Struct("!HH")


@unique
class Flaw(StrEnum):
    """Why bytes are no packet. The words stand in fault events."""

    HEADER_LENGTH = "header_length"  # IHL below 5, or beyond the packet
    JUMBOGRAM = "jumbogram"  # RFC 2675; WinDivert hands out at most 65,575 bytes
    TOO_MANY_EXTENSIONS = "too_many_extensions"
    TOTAL_LENGTH = "total_length"  # the header promises more bytes than there are, or none
    TRUNCATED = "truncated"  # a header ends beyond the packet
    VERSION = "version"  # neither 4 nor 6


class Malformed(Value, frozen=True):
    """Bytes that are no packet."""

    flaw: Flaw


class Fragment(Value, frozen=True):
    """A piece of a larger packet. Offset 0 without `more` is a whole packet all the same (RFC 6946)."""

    identification: int
    offset: int  # in bytes, a multiple of 8
    more: bool


class Packet(Value, frozen=True):
    """One IP packet. All offsets count from its first byte."""

    version: int  # 4 or 6
    length: int  # in bytes, headers included
    source: bytes  # 4 or 16 bytes
    destination: bytes
    protocol: int  # what follows the last extension header; of a later IPv6 fragment what its fragment header names
    transport: int  # offset of the transport header; of a later fragment of its payload
    source_port: int | None  # None where there are none: neither TCP nor UDP, or a later fragment
    destination_port: int | None
    tcp_flags: int | None  # None also where a first fragment ends before them
    fragment: Fragment | None


class Ends(Value, frozen=True):
    """Between which two ports of what addresses (4 or 16 bytes) a packet of TCP or UDP goes."""

    protocol: int
    transport: int  # offset of the transport header
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int


def ends_of(packet: bytes) -> Ends | None:
    """What `parse` says of one packet that has ports, and no more of it; None: it has none, or is none.

    First packets of connections pay for this one by one, so the usual one is read in one step.
    """
    if len(packet) >= IPV4_LEAST + PORTS and packet[0] == PLAIN_V4:
        length, fragment, protocol, source, destination, source_port, destination_port = _PLAIN.unpack_from(packet)
        if protocol in (TCP, UDP) and not fragment & 0x3FFF and IPV4_LEAST + PORTS <= length <= len(packet):
            return Ends(
                protocol=protocol,
                transport=IPV4_LEAST,
                source=source,
                destination=destination,
                source_port=source_port,
                destination_port=destination_port,
            )
    told = parse(packet)
    if isinstance(told, Malformed) or told.source_port is None or told.destination_port is None:
        return None
    return Ends(
        protocol=told.protocol,
        transport=told.transport,
        source=told.source,
        destination=told.destination,
        source_port=told.source_port,
        destination_port=told.destination_port,
    )


def parse(buffer: Buffer, offset: int = 0, end: int | None = None) -> Packet | Malformed:
    """The packet that begins at `offset`; bytes from `end` on (default: the buffer's end) do not belong to it."""
    length = length_at(buffer, offset, len(buffer) if end is None else end)
    if isinstance(length, Malformed):
        return length
    return _parse_v4(buffer, offset, length) if buffer[offset] >> 4 == 4 else _parse_v6(buffer, offset, length)


def split(batch: Buffer, length: int) -> Iterator[tuple[int, int, Packet | Malformed]]:
    """Offset, length and view of each packet of a batch, whose packets stand back to back in its first `length` bytes.

    What follows a packet whose length cannot be known cannot be told apart: it is one last, malformed piece.
    """
    offset = 0
    while offset < length:
        known = length_at(batch, offset, length)
        if isinstance(known, Malformed):
            yield offset, length - offset, known
            return
        yield offset, known, parse(batch, offset, offset + known)
        offset += known


def length_at(buffer: Buffer, offset: int, end: int) -> int | Malformed:
    """How long the packet at `offset` says it is: never less than its IP header, never beyond `end`."""
    room = end - offset
    if room < IPV4_LEAST:
        return Malformed(flaw=Flaw.TRUNCATED)
    match buffer[offset] >> 4:
        case 4:
            least, length = IPV4_LEAST, int.from_bytes(buffer[offset + 2 : offset + 4])
        case 6 if room < IPV6_HEADER:
            return Malformed(flaw=Flaw.TRUNCATED)
        case 6:
            least, length = IPV6_HEADER, IPV6_HEADER + int.from_bytes(buffer[offset + 4 : offset + 6])
            if length == IPV6_HEADER and buffer[offset + 6] == HOP_BY_HOP:
                return Malformed(flaw=Flaw.JUMBOGRAM)
        case _:
            return Malformed(flaw=Flaw.VERSION)
    return length if least <= length <= room else Malformed(flaw=Flaw.TOTAL_LENGTH)


def _parse_v4(buffer: Buffer, offset: int, length: int) -> Packet | Malformed:
    first, _, identification, bits, protocol, source, destination = _IPV4.unpack_from(buffer, offset)
    transport = (first & 0x0F) * 4
    if not IPV4_LEAST <= transport <= length:
        return Malformed(flaw=Flaw.HEADER_LENGTH)
    fragment = None
    if bits & 0x3FFF:
        fragment = Fragment(identification=identification, offset=(bits & 0x1FFF) * 8, more=bool(bits & 0x2000))
    return _with_ports(buffer, offset, length, 4, source, destination, protocol, transport, fragment)


def _parse_v6(buffer: Buffer, offset: int, length: int) -> Packet | Malformed:
    _, following, source, destination = _IPV6.unpack_from(buffer, offset)
    transport, fragment = IPV6_HEADER, None
    for _ in range(EXTENSIONS_MOST):
        if following not in EXTENSIONS or (fragment is not None and fragment.offset):
            return _with_ports(buffer, offset, length, 6, source, destination, following, transport, fragment)
        if transport + 8 > length:
            return Malformed(flaw=Flaw.TRUNCATED)
        if following == FRAGMENT and fragment is None:
            fragment = _fragment(buffer, offset + transport)
        size = _extension_size(following, buffer[offset + transport + 1])
        following = buffer[offset + transport]
        transport += size
        if transport > length:
            return Malformed(flaw=Flaw.TRUNCATED)
    return Malformed(flaw=Flaw.TOO_MANY_EXTENSIONS)


def _fragment(buffer: Buffer, at: int) -> Fragment:
    _, bits, identification = _IPV6_FRAGMENT.unpack_from(buffer, at)
    return Fragment(identification=identification, offset=bits & 0xFFF8, more=bool(bits & 1))


def _extension_size(kind: int, length_field: int) -> int:
    match kind:
        case _ if kind == FRAGMENT:
            return 8
        case _ if kind == AUTHENTICATION:
            return (length_field + 2) * 4
        case _:
            return (length_field + 1) * 8


def _with_ports(
    buffer: Buffer,
    offset: int,
    length: int,
    version: int,
    source: bytes,
    destination: bytes,
    protocol: int,
    transport: int,
    fragment: Fragment | None,
) -> Packet | Malformed:
    source_port = destination_port = tcp_flags = None
    if protocol in (TCP, UDP) and not (fragment is not None and fragment.offset):
        if transport + PORTS > length:
            return Malformed(flaw=Flaw.TRUNCATED)
        source_port, destination_port = _PORTS.unpack_from(buffer, offset + transport)
        if protocol == TCP and transport + TCP_FLAGS_AT < length:
            tcp_flags = buffer[offset + transport + TCP_FLAGS_AT]
    return Packet(
        version=version,
        length=length,
        source=source,
        destination=destination,
        protocol=protocol,
        transport=transport,
        source_port=source_port,
        destination_port=destination_port,
        tcp_flags=tcp_flags,
        fragment=fragment,
    )
