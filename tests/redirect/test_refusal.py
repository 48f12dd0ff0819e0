"""Refusals are what a remote's own stack would have sent: checked by the library's own checksums and parser."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydivert import Packet as Dissected

from mitmsec_redirect.packet import Packet, parse
from mitmsec_redirect.refusal import RST_ACK, UNREACHABLE_V4_MOST, UNREACHABLE_V6_MOST, checksum, refusal

V4 = bytes([192, 0, 2, 1]), bytes([203, 0, 113, 9])
V6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "09")


def ip(protocol: int, body: bytes, addresses: tuple[bytes, bytes] = V4) -> bytes:
    if len(addresses[0]) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + b"".join(addresses) + body
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + b"".join(addresses) + body


def tcp(flags: int, sequence: int = 1000, payload: bytes = b"", options: bytes = b"") -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack("!HHIIBBHHH", 40000, 443, sequence, 0, offset, flags, 8192, 0, 0) + options + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 40000, 443, 8 + len(payload), 0) + payload


def refused(data: bytes) -> bytes:
    packet = parse(data)
    assert isinstance(packet, Packet)
    answer = refusal(data, packet)
    assert answer is not None
    return answer


def with_checksums(answer: bytes) -> bytes:
    """As the library would have computed them."""
    dissected = Dissected(bytearray(answer))
    dissected.recalculate_checksums()
    return bytes(dissected.raw)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("flags", "payload", "taken"), [(0x02, b"", 1), (0x02, b"early", 6), (0x10, b"abc", 3), (0x11, b"", 1)]
)
def test_a_segment_is_answered_with_a_reset_that_its_sender_accepts(
    addresses: tuple[bytes, bytes], flags: int, payload: bytes, taken: int
) -> None:
    answer = refused(ip(6, tcp(flags, 0xFFFFFFFF, payload, b"\x02\x04\x05\xb4"), addresses))
    view = parse(answer)
    assert isinstance(view, Packet)
    assert (view.source, view.destination) == (addresses[1], addresses[0])
    assert (view.source_port, view.destination_port, view.tcp_flags) == (443, 40000, RST_ACK)
    assert struct.unpack_from("!II", answer, view.transport + 4) == (0, taken - 1)  # beyond 2³² it begins anew
    assert view.length == len(answer)
    assert with_checksums(answer) == answer


@pytest.mark.parametrize(("addresses", "most"), [(V4, UNREACHABLE_V4_MOST), (V6, UNREACHABLE_V6_MOST)])
@pytest.mark.parametrize("size", [0, 11, 1200, 1400])
def test_a_datagram_is_answered_with_port_unreachable_that_quotes_it(
    addresses: tuple[bytes, bytes], most: int, size: int
) -> None:
    data = ip(17, udp(bytes(range(256)) * 6)[: 8 + size], addresses)
    answer = refused(data)
    view = parse(answer)
    assert isinstance(view, Packet)
    assert (view.source, view.destination) == (addresses[1], addresses[0])
    assert answer[view.transport : view.transport + 2] == (b"\3\3" if len(addresses[0]) == 4 else b"\1\4")
    assert data.startswith(answer[view.transport + 8 :])
    assert len(answer) == min(most, len(data) + view.transport + 8)
    assert with_checksums(answer) == answer


def test_other_protocols_and_truncated_segments_are_not_answered() -> None:
    for data in (ip(1, bytes(8)), ip(6, tcp(0x02)[:16])):
        packet = parse(data)
        assert isinstance(packet, Packet)
        assert refusal(data, packet) is None


@given(st.binary(min_size=20, max_size=120), st.sampled_from([6, 17]), st.sampled_from([V4, V6]))
def test_no_packet_raises(body: bytes, protocol: int, addresses: tuple[bytes, bytes]) -> None:
    data = ip(protocol, body, addresses)
    packet = parse(data)
    if isinstance(packet, Packet):
        refusal(data, packet)


@given(st.binary(max_size=64))
def test_a_sum_with_its_checksum_is_zero(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert checksum(even + checksum(data)) == b"\0\0"
