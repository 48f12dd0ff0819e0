"""Packets are parsed where they lie, and no bytes raise."""

from __future__ import annotations

import struct
import sys

import made_packets as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packets import V4, V6

from mitmsec_redirect.packet import EXTENSIONS_MOST, Ends, Flaw, Fragment, Malformed, Packet, ends_of, parse, split

PORTS = (40001, 443)


def parsed(data: bytes, offset: int = 0) -> Packet:
    packet = parse(data, offset)
    assert isinstance(packet, Packet)
    return packet


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_a_tcp_packet(ends: tuple[bytes, bytes]) -> None:
    data = made.tcp(*ends, PORTS, flags=0x02, data=b"x" * 9)
    header = 20 if len(ends[0]) == 4 else 40
    assert parsed(data) == Packet(
        version=4 if header == 20 else 6,
        length=header + 29,
        source=ends[0],
        destination=ends[1],
        protocol=6,
        transport=header,
        source_port=40001,
        destination_port=443,
        tcp_flags=0x02,
        fragment=None,
    )


def test_udp_has_ports_and_no_flags_others_have_neither() -> None:
    udp = parsed(made.v4(*V4, made.datagram(*V4, PORTS), made.UDP))
    assert (udp.protocol, udp.source_port, udp.destination_port, udp.tcp_flags) == (17, 40001, 443, None)
    icmp = parsed(made.v4(*V4, b"\x08\0\0\0", made.ICMP))
    assert (icmp.protocol, icmp.source_port, icmp.destination_port, icmp.tcp_flags) == (1, None, None, None)


def test_ipv4_options_are_walked_over() -> None:
    packet = parsed(made.v4(*V4, made.segment(*V4, PORTS), options=made.OPTIONS * 10))
    assert (packet.transport, packet.source_port) == (60, 40001)


@pytest.mark.parametrize(
    "extensions",
    [
        [(0, made.PADDED)],
        [(60, made.PADDED)],
        [(43, made.ROUTING)],
        [(51, made.AH)],
        [(0, made.PADDED), (60, made.PADDED), (43, made.ROUTING), (44, made.fragment_body(0, False)), (51, made.AH)],
        [(60, made.PADDED)] * (EXTENSIONS_MOST - 1),
    ],
)
def test_extension_headers_are_walked_over(extensions: list[tuple[int, bytes]]) -> None:
    packet = parsed(made.v6(*V6, made.segment(*V6, PORTS), extensions=extensions))
    assert (packet.protocol, packet.source_port, packet.destination_port) == (6, *PORTS)
    assert packet.transport == 40 + sum(1 + len(body) for _, body in extensions)


@pytest.mark.parametrize("protocol", [50, 59, 135, 200])
def test_esp_no_next_header_and_unknown_ones_end_the_walk(protocol: int) -> None:
    packet = parsed(made.v6(*V6, b"\x06\0" + bytes(30), protocol, [(60, made.PADDED)]))
    assert (packet.protocol, packet.transport, packet.source_port) == (protocol, 48, None)


# --- fragments --------------------------------------------------------------------------------------------------------
def test_a_first_fragment_has_ports_a_later_one_has_none() -> None:
    head = made.segment(*V4, PORTS, data=bytes(12))
    first = parsed(made.v4(*V4, head, fragment=0x2000, identification=5))
    later = parsed(made.v4(*V4, head, fragment=0x2000 | 185, identification=5))
    last = parsed(made.v4(*V4, head, fragment=185, identification=5))
    assert (first.source_port, later.source_port, later.tcp_flags) == (40001, None, None)
    assert first.fragment == Fragment(identification=5, offset=0, more=True)
    assert later.fragment == Fragment(identification=5, offset=1480, more=True)
    assert last.fragment == Fragment(identification=5, offset=1480, more=False)


def test_a_later_ipv6_fragment_ends_the_walk_whatever_it_names_next() -> None:
    data = made.v6(*V6, bytes(8), 60, [(0, made.PADDED), (44, made.fragment_body(1448, True, 99))])
    packet = parsed(data)
    assert (packet.protocol, packet.transport, packet.source_port) == (60, 56, None)
    assert packet.fragment == Fragment(identification=99, offset=1448, more=True)


def test_a_whole_packet_in_a_fragment_header_has_ports() -> None:
    packet = parsed(made.v6(*V6, made.segment(*V6, PORTS), extensions=[(44, made.fragment_body(0, False, 3))]))
    assert packet.fragment == Fragment(identification=3, offset=0, more=False)
    assert packet.source_port == 40001


def test_of_two_fragment_headers_the_first_counts() -> None:
    twice = [(44, made.fragment_body(0, True, 1)), (44, made.fragment_body(800, False, 2))]
    packet = parsed(made.v6(*V6, made.segment(*V6, PORTS), extensions=twice))
    assert packet.fragment == Fragment(identification=1, offset=0, more=True)


def test_a_short_first_fragment_has_ports_but_no_flags() -> None:
    packet = parsed(made.v4(*V4, made.segment(*V4, PORTS)[:8], fragment=0x2000))
    assert (packet.source_port, packet.tcp_flags) == (40001, None)


# --- lies -------------------------------------------------------------------------------------------------------------
def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


TCP4, TCP6 = made.tcp(*V4, PORTS), made.tcp(*V6, PORTS)


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        (b"", Flaw.TRUNCATED),
        (TCP4[:19], Flaw.TRUNCATED),
        (TCP6[:39], Flaw.TRUNCATED),
        (changed(TCP4, 0, b"\x55"), Flaw.VERSION),
        (changed(TCP4, 0, b"\x44"), Flaw.HEADER_LENGTH),
        (changed(TCP4, 0, b"\x4f"), Flaw.HEADER_LENGTH),
        (changed(TCP4, 2, b"\0\0"), Flaw.TOTAL_LENGTH),
        (changed(TCP4, 2, b"\0\x13"), Flaw.TOTAL_LENGTH),
        (changed(TCP4, 2, b"\0\x29"), Flaw.TOTAL_LENGTH),
        (changed(TCP6, 4, b"\0\x15"), Flaw.TOTAL_LENGTH),
        (changed(changed(TCP6, 4, b"\0\0"), 6, b"\0"), Flaw.JUMBOGRAM),
        (changed(TCP6, 4, b"\0\0"), Flaw.TRUNCATED),
        (made.v4(*V4, b"abc"), Flaw.TRUNCATED),
        (made.v6(*V6, b"abc", made.UDP), Flaw.TRUNCATED),
        (made.v6(*V6, b"", 6, [(60, made.PADDED[:5])]), Flaw.TRUNCATED),
        (made.v6(*V6, bytes(8), 6, [(60, b"\xff" + bytes(6))]), Flaw.TRUNCATED),
        (made.v6(*V6, bytes(20), 6, [(60, made.PADDED)] * EXTENSIONS_MOST), Flaw.TOO_MANY_EXTENSIONS),
        (made.v6(*V6, b"", 60, [(60, made.PADDED)] * 8000), Flaw.TOO_MANY_EXTENSIONS),
    ],
)
def test_bytes_that_are_no_packet_say_why(data: bytes, flaw: Flaw) -> None:
    assert parse(data) == Malformed(flaw=flaw)


def test_an_empty_ipv6_packet_is_one() -> None:
    assert parsed(made.v6(*V6, b"", 59)).length == 40


def test_a_super_packet_of_64_kib_is_one() -> None:
    assert parsed(made.tcp(*V4, PORTS, data=bytes(65_535 - 40))).length == 65_535
    assert parsed(made.tcp(*V6, PORTS, data=bytes(65_535 - 20))).length == 65_575


def test_a_packet_is_found_at_its_offset_and_ends_where_told() -> None:
    data = b"rubbish" + TCP4 + b"next"
    assert parsed(data, 7) == parsed(TCP4)
    assert parse(data, 7, 7 + len(TCP4) - 1) == Malformed(flaw=Flaw.TOTAL_LENGTH)
    assert parse(data, len(data) + 5) == Malformed(flaw=Flaw.TRUNCATED)


# --- whatever comes ---------------------------------------------------------------------------------------------------
ANYTHING = st.binary(max_size=120) | made.spoilt()


@settings(deadline=None)
@given(ANYTHING, st.integers(0, 40))
def test_no_bytes_raise_and_what_parses_holds_together(data: bytes, offset: int) -> None:
    packet = parse(data, offset)
    assert packet == parse(bytearray(data), offset) == parse(memoryview(data), offset)
    if isinstance(packet, Malformed):
        return
    assert offset + packet.length <= len(data)
    assert 20 <= packet.transport <= packet.length
    at = offset + (12 if packet.version == 4 else 8)
    assert data[at:].startswith(packet.source + packet.destination)
    if packet.source_port is not None and packet.destination_port is not None:
        transport = data[offset + packet.transport : offset + packet.length]
        assert transport.startswith(struct.pack("!HH", packet.source_port, packet.destination_port))
        assert packet.tcp_flags == (transport[13] if packet.protocol == 6 and len(transport) > 13 else None)


@pytest.mark.skipif(sys.platform != "linux", reason="libebpfdivert judges filters on Linux")
@settings(deadline=None)
@given(made.spoilt())
def test_what_the_library_calls_tcp_is_tcp_with_the_same_ports(data: bytes) -> None:
    """WinDivert's own parser, which decides what a filter matches, is the reference. It alone reads cut-off packets."""
    import pydivert

    theirs = pydivert.Packet(data)
    try:
        if not theirs.matches("tcp"):
            return
    except ValueError:  # no packet to the library
        return
    ours = parse(data)
    if isinstance(ours, Malformed):
        assert ours.flaw in {Flaw.TOO_MANY_EXTENSIONS, Flaw.TOTAL_LENGTH}
        return
    assert ours.protocol == 6
    assert theirs.matches(f"tcp.SrcPort == {ours.source_port} and tcp.DstPort == {ours.destination_port}")


def test_every_real_packet_is_parsed() -> None:
    packets = [parsed(data) for data in made.captured()]
    assert [packet.length for packet in packets] == [len(data) for data in made.captured()]
    assert {packet.protocol for packet in packets} == {1, 2, 6, 17, 58}
    assert {443, 444} <= {packet.destination_port for packet in packets}
    assert max(packet.length for packet in packets) > 1500
    assert sum(packet.fragment is not None for packet in packets) == 5


# --- batches ----------------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.lists(made.packets(), max_size=6), st.binary(max_size=9))
def test_a_batch_is_walked_packet_by_packet(packets: list[bytes], after: bytes) -> None:
    batch = b"".join(packets)
    pieces = list(split(batch + after, len(batch)))
    assert [batch[offset : offset + size] for offset, size, _ in pieces] == packets
    assert [view for *_, view in pieces] == [parse(packet) for packet in packets]


@settings(deadline=None)
@given(st.lists(ANYTHING, max_size=5).map(b"".join))
def test_the_pieces_of_any_bytes_are_all_of_them(batch: bytes) -> None:
    at = 0
    for offset, size, view in split(batch, len(batch)):
        assert offset == at
        assert size == view.length if isinstance(view, Packet) else size > 0
        at += size
    assert at == len(batch)


def test_after_a_length_that_lies_the_rest_is_one_piece() -> None:
    batch = TCP4 + changed(TCP4, 2, b"\xff\xff") + TCP6
    assert list(split(batch, len(batch))) == [
        (0, 40, parse(TCP4)),
        (40, len(batch) - 40, Malformed(flaw=Flaw.TOTAL_LENGTH)),
    ]


def test_a_packet_whose_inside_is_malformed_does_not_end_the_batch() -> None:
    batch = made.v4(*V4, b"abc") + TCP4
    assert list(split(batch, len(batch))) == [(0, 23, Malformed(flaw=Flaw.TRUNCATED)), (23, 40, parse(TCP4))]


# --- ends -------------------------------------------------------------------------------------------------------------
def ends_by_parse(data: bytes) -> Ends | None:
    packet = parse(data)
    if isinstance(packet, Malformed) or packet.source_port is None or packet.destination_port is None:
        return None
    return Ends(
        protocol=packet.protocol,
        transport=packet.transport,
        source=packet.source,
        destination=packet.destination,
        source_port=packet.source_port,
        destination_port=packet.destination_port,
    )


@settings(deadline=None)
@given(st.one_of(made.packets(), ANYTHING))
def test_ends_are_those_that_parsing_tells(data: bytes) -> None:
    assert ends_of(data) == ends_by_parse(data)


@settings(deadline=None)
@given(st.sampled_from([TCP4, TCP6]), st.integers(0, 39), st.binary(min_size=1, max_size=4), st.integers(0, 60))
def test_ends_of_a_packet_that_something_was_done_to(data: bytes, at: int, new: bytes, kept: int) -> None:
    damaged = changed(data, at, new)[:kept]
    assert ends_of(damaged) == ends_by_parse(damaged)


def test_every_real_packet_has_the_ends_that_parsing_tells() -> None:
    found = [ends_of(data) for data in made.captured()]
    assert found == [ends_by_parse(data) for data in made.captured()]
    assert {None, 443} <= {ends and ends.destination_port for ends in found}
