"""Copies of packets to and from name servers: headers written by hand, and any bytes at all."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Endpoint
from mitmsec_redirect.dns_records import HEAD, RECORD_BYTES, DnsPacket, parse_dns_packet


def packet(source: str, destination: str, payload: bytes, ports: tuple[int, int], *, size: int | None = None) -> bytes:
    udp = struct.pack("!HHHH", *ports, 8 + len(payload) if size is None else size, 0) + payload
    first, second = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if first.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + first.packed + second.packed + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    return head + first.packed + second.packed + udp


def record(data: bytes, *, sent: bool) -> bytes:
    """As the program leaves it: behind the packet stands what was in the ring before."""
    return (HEAD.pack(len(data), sent) + data).ljust(RECORD_BYTES, b"\xee")


@pytest.mark.parametrize(("here", "there"), [("10.0.0.1", "10.0.0.53"), ("2001:db8::1", "2001:db8::53")])
def test_both_ends_are_told_from_the_programs_side(here: str, there: str) -> None:
    local, server = Endpoint.of(here, 4000), Endpoint.of(there, 53)
    asked = parse_dns_packet(record(packet(here, there, b"question", (4000, 53)), sent=True))
    assert asked == DnsPacket(True, local, server, b"question")
    answered = parse_dns_packet(record(packet(there, here, b"answer", (53, 4000)), sent=False))
    assert answered == DnsPacket(False, local, server, b"answer")


def test_an_empty_datagram_has_an_empty_payload() -> None:
    told = parse_dns_packet(record(packet("10.0.0.1", "10.0.0.53", b"", (4000, 53)), sent=True))
    assert told is not None
    assert told.payload == b""


@pytest.mark.parametrize("size", [7, 8, 12, 2000])
def test_a_fragment_or_a_length_that_lies_is_no_datagram(size: int) -> None:
    data = packet("10.0.0.1", "10.0.0.53", b"question", (4000, 53), size=size)
    assert parse_dns_packet(record(data, sent=True)) is None


@pytest.mark.parametrize(("address", "header"), [("10.0.0.1", 20), ("2001:db8::1", 40)])
def test_what_ends_within_its_headers_is_none(address: str, header: int) -> None:
    data = packet(address, address, b"", (4000, 53))
    for length in range(header + 8):
        assert parse_dns_packet(record(data[:length], sent=True)) is None


@given(st.binary(max_size=RECORD_BYTES - HEAD.size), st.booleans())
def test_any_packet_is_a_datagram_or_none(data: bytes, sent: bool) -> None:
    told = parse_dns_packet(record(data, sent=sent))
    assert told is None or (told.sent == sent and data.endswith(told.payload))
