"""Fuzzed: `packet.parse` and `packet.split`. What parses holds together."""

from __future__ import annotations

import struct

from mitmsec_redirect.packet import EXTENSIONS_MOST, TCP, Flaw, Fragment, Malformed, Packet, parse, split


def attempt(data: bytes) -> None:
    """One byte says where the packet begins; all of the rest is one packet, and a batch."""
    if not data:
        return
    offset, buffer = data[0] % 24, data[1:]
    packet = parse(buffer, offset)
    assert packet == parse(bytearray(buffer), offset) == parse(memoryview(buffer), offset)
    if isinstance(packet, Packet):
        _holds_together(packet, buffer, offset)
    _pieces_are_all_of_it(buffer)


def _holds_together(packet: Packet, buffer: bytes, offset: int) -> None:
    own = buffer[offset : offset + packet.length]
    assert len(own) == packet.length
    assert parse(own) == packet, "it depends on its own bytes only"
    assert parse(own[:-1]) in (Malformed(flaw=Flaw.TOTAL_LENGTH), Malformed(flaw=Flaw.TRUNCATED))
    header, most = (20, 60) if packet.version == 4 else (40, 40 + EXTENSIONS_MOST * 1028)
    assert header <= packet.transport <= min(packet.length, most)
    assert own[12 if packet.version == 4 else 8 :].startswith(packet.source + packet.destination)
    if packet.version == 4:
        bits = int.from_bytes(own[6:8])
        assert packet.fragment == (
            Fragment(identification=int.from_bytes(own[4:6]), offset=(bits & 0x1FFF) * 8, more=bool(bits & 0x2000))
            if bits & 0x3FFF
            else None
        )
    is_later = packet.fragment is not None and packet.fragment.offset > 0
    ports = (packet.source_port, packet.destination_port)
    if is_later or packet.protocol not in (6, 17):
        assert ports == (None, None)
        assert packet.tcp_flags is None
        return
    assert ports == struct.unpack_from("!HH", own, packet.transport)
    segment = own[packet.transport :]
    assert packet.tcp_flags == (segment[13] if packet.protocol == TCP and len(segment) > 13 else None)


def _pieces_are_all_of_it(batch: bytes) -> None:
    at = 0
    pieces = list(split(batch, len(batch)))
    for place, (offset, size, view) in enumerate(pieces):
        assert offset == at
        assert view == parse(batch[offset : offset + size])
        if isinstance(view, Packet):
            assert view.length == size
        elif view.flaw in (Flaw.TOTAL_LENGTH, Flaw.VERSION, Flaw.JUMBOGRAM):
            assert place == len(pieces) - 1, "nothing is found behind a length that lies"
        at += size
    assert at == len(batch)
