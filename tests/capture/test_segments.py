from __future__ import annotations

import io
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng_reader import flaws, needs_tshark, stream

from mitmsec.capture import pcapng
from mitmsec.capture.segments import SEGMENT_BYTES, Conversation, Packet, checksum
from mitmsec.core.model import Endpoint

V4 = Endpoint.of("192.0.2.1", 40000), Endpoint.of("203.0.113.5", 443)
V6 = Endpoint.of("2001:db8::1", 40000), Endpoint.of("2001:db8::2", 443)
MIXED = V4[0], V6[1]
FIN, SYN, RST, ACK = 1, 2, 4, 16


class Segment:
    """One packet, read field by field and with both checksums verified by plain addition."""

    def __init__(self, packet: Packet) -> None:
        data = packet.data
        if data[0] >> 4 == 4:
            assert (data[0], len(data)) == (0x45, struct.unpack_from(">H", data, 2)[0])
            assert plain_sum(data[:20]) == 0xFFFF
            addresses, segment = data[12:20], data[20:]
        else:
            assert (data[0] >> 4, len(data) - 40) == (6, struct.unpack_from(">H", data, 4)[0])
            addresses, segment = data[8:40], data[40:]
        assert plain_sum(addresses + struct.pack(">II", len(segment), 6) + segment) == 0xFFFF
        half = len(addresses) // 2
        self.ends = ip_address(addresses[:half]), ip_address(addresses[half:])
        *self.ports, self.sequence, self.acknowledged, offset, self.flags = struct.unpack_from(">HHIIBB", segment)
        self.data = segment[offset >> 4 << 2 :]
        self.sent = packet.sent


def plain_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total)


def read(packets: list[Packet]) -> list[Segment]:
    return [Segment(packet) for packet in packets]


@pytest.mark.parametrize("ends", [V4, V6])
def test_the_handshake_is_syn_synack_ack_between_the_real_addresses(ends: tuple[Endpoint, Endpoint]) -> None:
    segments = read(Conversation(*ends, first_sent=7, first_received=90).opened())
    assert [(s.flags, s.sequence, s.acknowledged) for s in segments] == [(SYN, 7, 0), (SYN | ACK, 90, 8), (ACK, 8, 91)]
    assert [s.ports for s in segments] == [[40000, 443], [443, 40000], [40000, 443]]
    assert [str(address) for address in segments[0].ends] == [end.address for end in ends]
    assert segments[1].ends == segments[0].ends[::-1]


def test_endpoints_of_different_families_are_both_written_as_ipv6() -> None:
    [syn, *_] = read(Conversation(*MIXED).opened())
    assert [str(address) for address in syn.ends] in (
        ["::ffff:192.0.2.1", "2001:db8::2"],
        ["::ffff:c000:201", "2001:db8::2"],
    )


@pytest.mark.parametrize("bad", [Endpoint(address="origin.test", port=1), Endpoint(address="::1", port=70_000)])
def test_an_endpoint_that_is_no_address_is_refused(bad: Endpoint) -> None:
    with pytest.raises(ValueError, match=r"origin\.test|70000"):
        Conversation(V6[0], bad)


def test_data_is_cut_into_segments_that_are_each_acknowledged() -> None:
    conversation = Conversation(*V4)
    conversation.opened()
    segments = read(conversation.carried(sent=True, data=bytes(SEGMENT_BYTES) + b"end"))
    assert [(s.sent, len(s.data)) for s in segments] == [(True, SEGMENT_BYTES), (False, 0), (True, 3), (False, 0)]
    assert segments[-1].acknowledged == 1 + SEGMENT_BYTES + 3
    assert conversation.carried(sent=False, data=b"") == []


def test_an_orderly_end_closes_both_directions_and_a_reset_comes_from_the_other_side() -> None:
    orderly, cut = Conversation(*V4), Conversation(*V4)
    orderly.opened()
    assert [(s.sent, s.flags, s.sequence, s.acknowledged) for s in read(orderly.ended(reset=False))] == [
        (True, FIN | ACK, 1, 1),
        (False, FIN | ACK, 1, 2),
        (True, ACK, 2, 2),
    ]
    cut.opened()
    assert [(s.sent, s.flags) for s in read(cut.ended(reset=True))] == [(False, RST | ACK)]


def test_sequence_numbers_go_round() -> None:
    conversation = Conversation(*V4, first_sent=0xFFFF_FFFE, first_received=0xFFFF_FFFF)
    conversation.opened()
    [data, acknowledgement] = read(conversation.carried(sent=True, data=b"abcd"))
    assert (data.sequence, data.acknowledged) == (0xFFFF_FFFF, 0)
    assert acknowledgement.acknowledged == 3


@given(st.binary(min_size=1, max_size=70))
def test_the_checksum_is_the_one_of_plain_addition(data: bytes) -> None:
    if any(data):
        assert checksum(data) == 0xFFFF - plain_sum(data)


chunks = st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=30)


@given(st.sampled_from([V4, V6, MIXED]), chunks, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_any_chunks_reassemble_to_the_same_bytes(
    ends: tuple[Endpoint, Endpoint], pieces: list[tuple[bool, bytes]], first_sent: int, first_received: int
) -> None:
    """A receiver that goes by sequence numbers gets both streams, and nothing is acknowledged early."""
    conversation = Conversation(*ends, first_sent=first_sent, first_received=first_received)
    packets = conversation.opened()
    for sent, data in pieces:
        packets += conversation.carried(sent=sent, data=data)
    packets += conversation.ended(reset=False)
    streams = {True: bytearray(), False: bytearray()}
    next_sequence = {True: first_sent, False: first_received}
    for segment in read(packets):
        assert segment.sequence == next_sequence[segment.sent] & 0xFFFFFFFF
        if segment.flags & ACK:
            assert segment.acknowledged == next_sequence[not segment.sent] & 0xFFFFFFFF
        streams[segment.sent] += segment.data
        next_sequence[segment.sent] += len(segment.data) + bool(segment.flags & (SYN | FIN))
    for side in (True, False):
        assert bytes(streams[side]) == b"".join(data for sent, data in pieces if sent is side)


@needs_tshark
@pytest.mark.parametrize("ends", [V4, V6, MIXED])
def test_tshark_finds_no_flaw_and_follows_the_stream_around_the_end_of_sequence_numbers(
    ends: tuple[Endpoint, Endpoint], tmp_path: Path
) -> None:
    conversation = Conversation(*ends, first_sent=0xFFFF_FF00, first_received=0xFFFF_0000)
    pieces = [(True, b"a" * 200), (False, bytes(range(256)) * 300), (True, b"b" * 5000), (False, b"c")]
    packets = conversation.opened()
    for sent, data in pieces:
        packets += conversation.carried(sent=sent, data=data)
    packets += conversation.ended(reset=False)
    file = io.BytesIO()
    file.write(pcapng.section_header(application="test") + pcapng.interface_description(name="test"))
    for index, packet in enumerate(packets):
        file.write(pcapng.enhanced_packet(packet.data, time_ns=10**18 + index, outbound=packet.sent))
    path = tmp_path / "flow.pcapng"
    path.write_bytes(file.getvalue())
    assert flaws(path) == []
    sides = [b"".join(data for side, data in pieces if side is which) for which in (True, False)]
    assert list(stream(path)) == sides


@needs_tshark
def test_the_judge_sees_a_wrong_checksum(tmp_path: Path) -> None:
    """Otherwise the other tests would pass whatever the packets are."""
    [syn, *_] = Conversation(*V4).opened()
    spoilt = syn.data[:30] + b"\x55" + syn.data[31:]
    path = tmp_path / "flow.pcapng"
    head = pcapng.section_header(application="test") + pcapng.interface_description(name="test")
    path.write_bytes(head + pcapng.enhanced_packet(spoilt, time_ns=1, outbound=True))
    assert len(flaws(path)) == 1
