"""WINDIVERT_ADDRESS, the 80 bytes that go with each packet and are each SOCKET event (WinDivert 2.2, windivert.h).

     0 time │ 8 layer │ 9 event │ 10 flags │ 12 - │ 16 endpoint, or interface │ 24 parent │ 32 pid
    36 local[4 × 32 bits] │ 52 remote[4 × 32 bits] │ 68 local port │ 70 remote port │ 72 protocol │ 80

All in the machine's order; of an address the last word comes first, IPv4 is written as ::ffff:a.b.c.d.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from ipaddress import IPv6Address
from typing import Final

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.divert_signals import SocketConnected

RECORD_BYTES: Final = 80
FLAGS_AT: Final = 10
NANOSECONDS: Final = 10**9
_COOKIE: Final = struct.Struct("<qxB6xQ8xI36xB7x")  # time, event, endpoint, pid, protocol
_SOCKET: Final = struct.Struct("<qxB22xI4I4IHHB7x")  # time, event, pid, both addresses and ports, protocol
type Buffer = bytes | bytearray | memoryview
TRANSPORTS: Final = {6: Transport.TCP, 17: Transport.UDP}


class Layer(IntEnum):
    """What a handle sees."""

    NETWORK = 0
    SOCKET = 3


class SocketEvent(IntEnum):
    """What happened to a socket."""

    BIND = 3
    CONNECT = 4
    LISTEN = 5
    ACCEPT = 6
    CLOSE = 7


class RecordFlag(IntFlag):
    """What is known of a packet. A checksum whose flag is cleared is computed when the packet is sent."""

    SNIFFED = 1
    OUTBOUND = 2
    LOOPBACK = 4
    IMPOSTOR = 8
    IPV6 = 16
    IP_CHECKSUM = 32
    TCP_CHECKSUM = 64
    UDP_CHECKSUM = 128


CHECKSUMS: Final = RecordFlag.IP_CHECKSUM | RecordFlag.TCP_CHECKSUM | RecordFlag.UDP_CHECKSUM


def parse_connects(
    records: Buffer, count: int, *, has_cookie: bool, ticks_per_s: int = NANOSECONDS
) -> list[SocketConnected]:
    """Of the first `count` records those that say that somebody connects."""
    found = (parse_connect(records, at, has_cookie=has_cookie, ticks_per_s=ticks_per_s) for at in range(count))
    return [event for event in found if event is not None]


def parse_connect(
    records: Buffer, at: int = 0, *, has_cookie: bool, ticks_per_s: int = NANOSECONDS
) -> SocketConnected | None:
    """The event in record `at`, if somebody connects by TCP or UDP.

    `has_cookie`: endpoints are cookies of sockets, as on Linux; addresses are not read then, and times are nanoseconds.
    The whole machine's connections come by here. `ticks_per_s`: of times beside addresses, Windows'.
    """
    if has_cookie:
        time, event, endpoint, pid, protocol = _COOKIE.unpack_from(records, at * RECORD_BYTES)
        if event != SocketEvent.CONNECT or protocol not in TRANSPORTS:
            return None
        return SocketConnected(transport=TRANSPORTS[protocol], pid=pid, connected_ns=time, cookie=endpoint)
    time, event, pid, *words, local_port, remote_port, protocol = _SOCKET.unpack_from(records, at * RECORD_BYTES)
    if event != SocketEvent.CONNECT or protocol not in TRANSPORTS:
        return None
    return SocketConnected(
        transport=TRANSPORTS[protocol],
        pid=pid,
        connected_ns=time * NANOSECONDS // ticks_per_s,
        local=Endpoint.of(_address(words[:4]), local_port),
        remote=Endpoint.of(_address(words[4:]), remote_port),
    )


def _address(words: list[int]) -> str:
    """Network order is that of the words turned round."""
    return str(IPv6Address(struct.pack(">4I", *reversed(words))))


def inbound(flags: int) -> int:
    """A record's flags for a packet of ours that is to come in from outside, its checksums to be computed."""
    return flags & ~int(RecordFlag.OUTBOUND | CHECKSUMS) & 0xFF
