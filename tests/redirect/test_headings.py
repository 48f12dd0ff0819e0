"""The heads of packets: real ones, cut ones, broken ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.capture.segments import Conversation
from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect import headings
from mitmsec_redirect.headings import Heading, Segment, Unread, datagram, read, segment

V4 = Endpoint(address="10.0.0.1", port=40000), Endpoint(address="203.0.113.9", port=443)
V6 = Endpoint(address="fd77::1", port=40000), Endpoint(address="2001:db8::9", port=443)


def udp(payload_bytes: int = 0, *, claimed: int | None = None) -> bytes:
    length = 8 + payload_bytes if claimed is None else claimed
    header = struct.pack("!BxHxxHxB2x4s4s", 0x45, 20 + length, 0, 17, bytes([10, 0, 0, 1]), bytes([9, 9, 9, 9]))
    return header + struct.pack("!HHHH", 5000, 443, length, 0) + bytes(payload_bytes)


def v6(*extensions: tuple[int, bytes], last: int = 17, transport: bytes = struct.pack("!HHHH", 1, 2, 8, 0)) -> bytes:
    """Each extension by its own number; the `following` field of each is filled in."""
    following = [*(number for number, _ in extensions[1:]), last] if extensions else []
    chain = b"".join(bytes([n]) + body[1:] for n, (_, body) in zip(following, extensions, strict=True))
    first = extensions[0][0] if extensions else last
    body = chain + transport
    return struct.pack("!IHBB", 6 << 28, len(body), first, 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + body


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_a_whole_conversation_is_read(ends: tuple[Endpoint, Endpoint]) -> None:
    talk = Conversation(*ends)
    first, second, third = (read(packet.data) for packet in talk.opened())
    assert first == Heading(Transport.TCP, *ends, 0, headings.SYN)
    assert second == Heading(Transport.TCP, *ends[::-1], 0, headings.SYN | headings.ACK)
    assert [one.opens for one in (first, second, third) if isinstance(one, Heading)] == [True, False, False]
    data = read(talk.carried(sent=True, data=b"x" * 1000)[0].data)
    assert isinstance(data, Heading)
    assert data.payload_bytes == 1000


def test_a_datagram_is_read_from_its_first_bytes() -> None:
    heading = read(udp(1200)[:28])
    assert isinstance(heading, Heading)
    assert (heading.transport, str(heading.source), str(heading.destination)) == (
        Transport.UDP,
        "10.0.0.1:5000",
        "9.9.9.9:443",
    )
    assert (heading.payload_bytes, heading.opens) == (1200, False)


def test_a_v4_mapped_address_is_written_as_ipv4() -> None:
    mapped = v6()[:8] + (bytes(10) + b"\xff\xff\x0a\0\0\1") * 2 + v6()[40:]
    heading = read(mapped)
    assert isinstance(heading, Heading)
    assert heading.source.address == "10.0.0.1"


def test_extension_headers_are_walked_over() -> None:
    options = (headings.DESTINATION, bytes([0, 1]) + bytes(14))
    hops = (headings.HOP_BY_HOP, bytes(8))
    first_fragment = (headings.FRAGMENT, struct.pack("!BxHI", 0, 1, 7))
    authentication = (headings.AUTHENTICATION, bytes([0, 4]) + bytes(22))
    heading = read(v6(hops, options, first_fragment, authentication))
    assert isinstance(heading, Heading)
    assert (heading.source.port, heading.destination.port) == (1, 2)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", Unread.NEED_MORE),
        (b"\x05", Unread.MALFORMED),
        (udp()[:19], Unread.NEED_MORE),
        (udp()[:27], Unread.NEED_MORE),
        (udp(claimed=7), Unread.MALFORMED),
        (b"\x44" + udp()[1:], Unread.MALFORMED),  # a header of 16 bytes
        (b"\x4f" + udp()[1:], Unread.MALFORMED),  # a header longer than the packet
        (udp()[:6] + b"\x00\x10" + udp()[8:], Unread.FRAGMENT),
        (udp()[:9] + b"\x01" + udp()[10:], Unread.OTHER_PROTOCOL),
        (v6()[:39], Unread.NEED_MORE),
        (v6((0, bytes(8)))[:44], Unread.NEED_MORE),
        (v6((0, bytes(8)), transport=b"")[:4] + b"\0\4" + v6((0, bytes(8)))[6:], Unread.MALFORMED),
        (v6((headings.FRAGMENT, struct.pack("!BxHI", 0, 8, 7))), Unread.FRAGMENT),
        (v6(*[(headings.HOP_BY_HOP, bytes(8))] * 17), Unread.MALFORMED),
        (v6(last=59), Unread.OTHER_PROTOCOL),
        (v6(last=6, transport=bytes(12) + b"\x40" + bytes(7)), Unread.MALFORMED),  # a TCP header of 16 bytes
        (v6(last=6, transport=bytes(12) + b"\x60" + bytes(7)), Unread.MALFORMED),  # one longer than the packet
    ],
)
def test_what_is_none_says_why(packet: bytes, why: Unread) -> None:
    assert read(packet) is why


@given(st.binary(max_size=120) | st.binary(max_size=100).map(lambda rest: b"\x45" + rest))
def test_no_bytes_raise_and_a_heading_needs_no_more_than_it_says(data: bytes) -> None:
    heading = read(data)
    if isinstance(heading, Heading):
        assert heading.payload_bytes >= 0
        assert read(data + b"more") == heading


@given(st.integers(0, 79))
def test_a_packet_cut_anywhere_is_the_same_or_needs_more(at: int) -> None:
    packet = Conversation(*V6).carried(sent=True, data=b"x" * 20)[0].data
    assert read(packet[:at]) in (Unread.NEED_MORE, read(packet))


@pytest.mark.parametrize("ends", [V4, V6])
def test_a_segment_has_its_number_and_what_it_carries(ends: tuple[Endpoint, Endpoint]) -> None:
    talk = Conversation(*ends, first_sent=2**32 - 1)
    syn = talk.opened()[0].data
    carried = talk.carried(sent=True, data=b"question")[0].data
    assert segment(syn) == Segment(2**32 - 1, b"")
    assert segment(carried) == Segment(0, b"question")
    assert segment(carried[:-3]) == Segment(0, b"quest")
    assert segment(carried + b"padding of the link") == Segment(0, b"question")


def test_a_datagram_is_what_it_carries() -> None:
    assert datagram(udp(4) + b"padding of the link") == bytes(4)
    assert datagram(udp(4)[:-3]) == bytes(1)
    assert datagram(v6(transport=struct.pack("!HHHH", 1, 2, 14, 0) + b"answer")) == b"answer"


def test_what_is_not_udp_is_no_datagram() -> None:
    assert datagram(struct.pack("!BxHxxHxB2x4s4s", 0x45, 40, 0, 6, bytes(4), bytes(4)) + bytes(20)) is None
    assert datagram(struct.pack("!BxHxxHxB2x4s4s", 0x45, 40, 1, 17, bytes(4), bytes(4)) + bytes(20)) is None


def test_what_is_not_tcp_is_no_segment() -> None:
    assert segment(udp(4)) is None
    assert segment(struct.pack("!BxHxxHxB2x4s4s", 0x45, 40, 1, 6, bytes(4), bytes(4)) + bytes(20)) is None
