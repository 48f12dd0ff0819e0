"""The bytes that `dns_programs` write for each packet to or from a name server, and the packet that they hold.

0 length │ 4 sent │ 8 packet, from the IP header on                 RECORD_BYTES in all, whatever the length
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from mitmsec.core.model import Endpoint, Value

HEAD: Final = struct.Struct("=II")
LENGTH, SENT, PACKET = 0, 4, 8
PACKET_LIMIT_BYTES: Final = 1504  # a multiple of 8, and a full Ethernet frame; resolvers ask for less (EDNS: 1,232)
RECORD_BYTES: Final = PACKET + PACKET_LIMIT_BYTES
V4_HEADER_BYTES, V6_HEADER_BYTES, UDP_HEADER_BYTES = 20, 40, 8
DNS_PORT: Final = 53
_PORTS: Final = struct.Struct("!HHH")  # source, destination, length


class DnsPacket(Value, frozen=True):
    """One message to or from port 53, not looked at."""

    sent: bool  # by the program; else to it
    local: Endpoint
    server: Endpoint
    payload: bytes


def parse_dns_packet(record: bytes) -> DnsPacket | None:
    """None for what is no whole datagram: a fragment, for example."""
    length, sent = HEAD.unpack_from(record)
    return parse_packet(record[PACKET : PACKET + length], sent=bool(sent))


def parse_packet(packet: bytes, *, sent: bool) -> DnsPacket | None:
    """The same of the packet alone, from its IP header on, without options."""
    v6 = packet[:1] > b"\x50"
    header = V6_HEADER_BYTES if v6 else V4_HEADER_BYTES
    if len(packet) < header + UDP_HEADER_BYTES:
        return None
    addresses = (packet[8:24], packet[24:40]) if v6 else (packet[12:16], packet[16:20])
    source_port, destination_port, size = _PORTS.unpack_from(packet, header)
    if size != len(packet) - header:
        return None
    source, destination = (
        Endpoint.of(str(ip_address(address)), port)
        for address, port in zip(addresses, (source_port, destination_port), strict=True)
    )
    local, server = (source, destination) if sent else (destination, source)
    return DnsPacket(sent, local, server, packet[header + UDP_HEADER_BYTES :])
