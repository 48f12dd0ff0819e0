"""Packets of diverted flows are sent to the gate and back, whole batches at a time, and no others are touched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import made_packets as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packets import V4, V6

from mitmsec_redirect.nat import Added, Flow, NatTable, rewrite, rewrite_one
from mitmsec_redirect.packet import Packet, ends_of, parse

GATE = 8080
OUTBOUND, LOOPBACK, TCP_VALID = 0x02, 0x04, 0x40
INBOUND_VALID = made.OUTBOUND_VALID ^ OUTBOUND


def flow(
    ends: tuple[bytes, bytes] = V4, client_port: int = 40001, origin_port: int = 443, *, loopback: bool = False
) -> Flow:
    client, origin = ends
    return Flow(client=client, client_port=client_port, origin=origin, origin_port=origin_port, loopback=loopback)


def table_of(*flows: Flow, limit: int = 100) -> NatTable:
    table = NatTable(gate_port=GATE, limit=limit)
    for each in flows:
        assert table.add(each) is Added.ADDED
    return table


def rewritten(
    packets: Sequence[bytes], table: NatTable, flags: int = made.OUTBOUND_VALID, after: bytes = b""
) -> tuple[list[bytes], list[int], list[tuple[int, int, int]]]:
    """The packets and the flags of their records afterwards, and what was left."""
    batch = bytearray(b"".join(packets) + after)
    addresses = bytearray(b"".join(made.record(flags) for _ in packets))
    left = rewrite(memoryview(batch), len(batch), memoryview(addresses), len(packets), table)
    ends = list(itertools.accumulate(map(len, packets), initial=0))
    pieces = [bytes(batch[start:end]) for start, end in itertools.pairwise(ends)]
    flags_after = list(addresses[10::80])
    addresses[10::80] = bytes(len(packets))
    assert addresses == bytes(80 * len(packets)), "nothing else in a record is touched"
    return pieces, flags_after, left


# --- there and back ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_the_programs_packet_goes_to_the_gate_and_seems_to_come_from_the_origin(ends: tuple[bytes, bytes]) -> None:
    client, origin = ends
    sent = made.tcp(client, origin, (40001, 443), flags=0x02)
    assert rewritten([sent], table_of(flow(ends))) == (
        [made.tcp(origin, client, (40001, GATE), flags=0x02)],
        [INBOUND_VALID],
        [],
    )


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_the_gates_answer_goes_to_the_program_as_the_origins(ends: tuple[bytes, bytes]) -> None:
    client, origin = ends
    answer = made.tcp(client, origin, (GATE, 40001), flags=0x12)
    assert rewritten([answer], table_of(flow(ends))) == (
        [made.tcp(origin, client, (443, 40001), flags=0x12)],
        [INBOUND_VALID],
        [],
    )


def test_on_loopback_only_the_gates_port_is_put_in_and_the_packet_stays_outbound() -> None:
    client, server = bytes([127, 0, 0, 1]), bytes([127, 0, 0, 9])
    packets = [made.tcp(client, server, (40001, 80)), made.tcp(server, client, (GATE, 40001))]
    pieces, flags, left = rewritten(
        packets, table_of(flow((client, server), origin_port=80, loopback=True)), made.OUTBOUND_VALID | LOOPBACK
    )
    assert pieces == [made.tcp(client, server, (40001, GATE)), made.tcp(server, client, (80, 40001))]
    assert (flags, left) == ([made.OUTBOUND_VALID | LOOPBACK] * 2, [])


@settings(deadline=None)
@given(made.PORT, made.PORT, st.sampled_from([V4, V6]), st.binary(max_size=50))
def test_a_checksum_that_was_right_is_exactly_what_a_computation_gives(
    client_port: int, origin_port: int, ends: tuple[bytes, bytes], data: bytes
) -> None:
    asked = flow(ends, client_port, origin_port)
    table = NatTable(gate_port=GATE)
    if table.add(asked) is not Added.ADDED:
        assert GATE in (client_port, origin_port)
        return
    client, origin = ends
    packets = [
        made.tcp(client, origin, (client_port, origin_port), data=data),
        made.tcp(client, origin, (GATE, client_port), data=data),
    ]
    pieces, _flags, left = rewritten(packets, table)
    assert left == []
    assert pieces == [
        made.tcp(origin, client, (client_port, GATE), data=data),
        made.tcp(origin, client, (origin_port, client_port), data=data),
    ]


def test_a_checksum_that_is_not_valid_is_left_to_the_library() -> None:
    sent = bytearray(made.tcp(*V4, (40001, 443)))
    sent[36:38] = b"\xab\xcd"
    (piece,), flags, _ = rewritten([bytes(sent)], table_of(flow()), OUTBOUND)
    assert piece[36:38] == b"\xab\xcd"
    assert flags == [0]


# --- what is left -----------------------------------------------------------------------------------------------------
def test_packets_of_other_flows_are_left_in_their_places() -> None:
    ours = made.tcp(*V4, (40001, 443))
    others = [
        made.tcp(*V4, (40002, 443)),
        made.tcp(*V4, (40001, 80)),
        made.tcp(V4[0], bytes([192, 0, 2, 8]), (40001, 443)),
        made.tcp(V4[1], V4[0], (40001, 443)),
        made.tcp(*V4, (GATE, 40002)),
        made.tcp(*V6, (40001, 443), flags=0x02),
        made.v4(*V4, made.datagram(*V4, (40001, 443)), made.UDP),
        made.v4(*V4, b"\x08\0", made.ICMP),
        made.v6(*V6, b"", 59),
        made.v6(*V6, made.datagram(*V6, (40001, 443)), made.UDP),
    ]
    packets = [ours, *others, ours]
    pieces, flags, left = rewritten(packets, table_of(flow(), flow(V6, origin_port=80)))
    assert pieces[1:-1] == others
    assert pieces[0] == pieces[-1] == made.tcp(V4[1], V4[0], (40001, GATE))
    assert flags == [INBOUND_VALID, *[made.OUTBOUND_VALID] * len(others), INBOUND_VALID]
    assert [index for index, *_ in left] == list(range(1, len(packets) - 1))
    ends = list(itertools.accumulate(map(len, packets), initial=0))
    assert [(offset, size) for _, offset, size in left] == [(ends[index], len(packets[index])) for index, *_ in left]


def test_fragments_options_and_extension_headers_are_left_for_the_slow_way() -> None:
    body = made.segment(*V4, (40001, 443))
    packets = [
        made.v4(*V4, body, options=made.OPTIONS),
        made.v4(*V4, body, fragment=0x2000),
        made.v4(*V4, body, fragment=3),
        made.v6(*V6, made.segment(*V6, (40001, 443)), extensions=[(60, made.PADDED)]),
    ]
    pieces, _, left = rewritten(packets, table_of(flow(), flow(V6)))
    assert pieces == packets
    assert [index for index, *_ in left] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "liar",
    [
        b"\x45\0\0\x13" + bytes(40),
        b"\x45\0\xff\xff" + bytes(40),
        b"\x60\0\0\0\xff\xff\x06" + bytes(60),
        b"\x00" * 44,
        b"\x46\0\xff\xff" + bytes(40),
    ],
)
def test_after_a_length_that_lies_the_rest_is_left_as_one_piece(liar: bytes) -> None:
    ours = made.tcp(*V4, (40001, 443))
    pieces, flags, left = rewritten([ours, liar, ours], table_of(flow()))
    assert pieces[1:] == [liar, ours]
    assert flags == [INBOUND_VALID, made.OUTBOUND_VALID, made.OUTBOUND_VALID]
    assert left == [(1, len(ours), len(liar) + len(ours))]


def test_bytes_beyond_the_last_record_are_told_too() -> None:
    ours = made.tcp(*V4, (40001, 443))
    assert rewritten([ours], table_of(flow()), after=b"abc")[2] == [(1, len(ours), 3)]


def test_short_packets_at_the_end_of_a_batch_are_packets() -> None:
    short = [made.v4(*V4, b"\x08\0", made.ICMP), made.v6(*V6, b"", 59), made.v6(*V6, b"abc")]
    _, _, left = rewritten([short[-1], *short], table_of(flow()))
    assert [index for index, *_ in left] == [0, 1, 2, 3]


BATCHES = st.lists(made.packets() | made.spoilt() | st.binary(max_size=70), max_size=6)


@settings(deadline=None)
@given(BATCHES, st.integers(0, 255))
def test_no_batch_raises_and_what_is_left_is_unchanged(packets: list[bytes], flags: int) -> None:
    table = table_of(*(flow(ends, port) for ends in (V4, V6) for port in (40000, 40001)))
    batch = b"".join(packets)
    pieces, _, left = rewritten(packets, table, flags)
    after = b"".join(pieces)
    assert len(after) == len(batch)
    for _index, offset, size in left:
        assert after[offset : offset + size] == batch[offset : offset + size]


@settings(deadline=None)
@given(st.lists(made.packets(), max_size=5))
def test_the_fast_way_and_the_slow_way_do_the_same(packets: list[bytes]) -> None:
    """For each packet that the fast way takes; of what it leaves, the slow way takes more."""
    table = NatTable(gate_port=GATE)
    for packet in packets[::2]:
        view = parse(packet)
        if isinstance(view, Packet) and view.source_port is not None and view.destination_port is not None:
            table.add(flow((view.source, view.destination), view.source_port, view.destination_port))
    fast, fast_flags, left = rewritten(packets, table)
    for index, packet in enumerate(packets):
        buffer, address, view = bytearray(packet), made.record(), parse(packet)
        assert isinstance(view, Packet)
        taken = rewrite_one(buffer, 0, view, address, 0, table)
        if index not in {at for at, *_ in left}:
            assert taken
            assert (bytes(buffer), address[10]) == (fast[index], fast_flags[index])
        elif not taken:
            assert (bytes(buffer), address[10]) == (packet, made.OUTBOUND_VALID)


# --- one by one -------------------------------------------------------------------------------------------------------
def one(packet: bytes, table: NatTable, flags: int = made.OUTBOUND_VALID) -> tuple[bool, bytes, int]:
    """Rewritten within a buffer and a row of records."""
    buffer, addresses = bytearray(b"??" + packet + b"??"), made.record() + made.record(flags) + made.record()
    view = parse(buffer, 2)
    assert isinstance(view, Packet)
    taken = rewrite_one(buffer, 2, view, addresses, 1, table)
    assert (buffer[:2], buffer[-2:]) == (b"??", b"??")
    assert (addresses[10], addresses[170]) == (made.OUTBOUND_VALID, made.OUTBOUND_VALID)
    return taken, bytes(buffer[2:-2]), addresses[90]


def test_a_packet_with_options_is_rewritten() -> None:
    client, origin = V4
    sent = made.v4(client, origin, made.segment(client, origin, (40001, 443)), options=made.OPTIONS)
    due = made.v4(origin, client, made.segment(origin, client, (40001, GATE)), options=made.OPTIONS)
    assert one(sent, table_of(flow())) == (True, due, INBOUND_VALID)


def test_a_packet_with_extension_headers_is_rewritten() -> None:
    client, origin = V6
    extensions = [(0, made.PADDED), (60, made.PADDED), (51, made.AH)]
    sent = made.v6(client, origin, made.segment(client, origin, (GATE, 40001)), extensions=extensions)
    due = made.v6(origin, client, made.segment(origin, client, (443, 40001)), extensions=extensions)
    assert one(sent, table_of(flow(V6))) == (True, due, INBOUND_VALID)


def test_what_has_no_ports_or_another_protocol_is_left() -> None:
    body = made.segment(*V4, (40001, 443))
    for packet in (
        made.v4(*V4, body, fragment=3),
        made.v4(*V4, body, made.UDP),
        made.v4(*V4, body, made.ICMP),
        made.tcp(*V4, (40002, 443)),
    ):
        assert one(packet, table_of(flow())) == (False, packet, made.OUTBOUND_VALID)


def test_a_first_fragments_checksum_is_ours_to_keep_right_since_the_library_cannot() -> None:
    client, origin = V4
    whole = made.segment(client, origin, (40001, 443), data=bytes(range(64)))
    due = made.segment(origin, client, (40001, GATE), data=bytes(range(64)))
    sent = made.v4(client, origin, whole[:40], fragment=0x2000)
    taken, piece, flags = one(sent, table_of(flow()), OUTBOUND)
    assert (taken, piece, flags) == (True, made.v4(origin, client, due[:40], fragment=0x2000), TCP_VALID)


def test_a_first_fragment_without_its_checksum_is_left() -> None:
    sent = made.v4(*V4, made.segment(*V4, (40001, 443))[:16], fragment=0x2000)
    assert one(sent, table_of(flow())) == (False, sent, made.OUTBOUND_VALID)


def test_a_checksum_that_is_not_valid_is_left_to_the_library_here_too() -> None:
    sent = made.v4(*V4, made.segment(*V4, (40001, 443)), options=made.OPTIONS)
    taken, piece, flags = one(sent, table_of(flow()), OUTBOUND)
    assert (taken, flags) == (True, 0)
    assert piece[40:42] == sent[40:42]


# --- the table --------------------------------------------------------------------------------------------------------
def test_one_client_port_used_to_two_origins_is_two_flows() -> None:
    elsewhere = (V4[0], bytes([192, 0, 2, 8]))
    table = table_of(flow(), flow(elsewhere, origin_port=8443))
    client, origin = V4
    packets = [made.tcp(*ends, (GATE, 40001)) for ends in (V4, elsewhere)]
    pieces, _, _ = rewritten(packets, table)
    assert pieces == [made.tcp(origin, client, (443, 40001)), made.tcp(elsewhere[1], client, (8443, 40001))]


def test_two_flows_that_the_gate_could_not_tell_apart_are_not_both_taken() -> None:
    table = table_of(flow())
    assert table.add(flow(origin_port=80)) is Added.TAKEN
    assert table.add(flow(loopback=True)) is Added.TAKEN
    assert table.remove(flow())
    assert table.add(flow(origin_port=80)) is Added.ADDED


@pytest.mark.parametrize("own", [flow(client_port=GATE), flow(origin_port=GATE)])
def test_the_gates_own_packets_are_no_flow(own: Flow) -> None:
    assert NatTable(gate_port=GATE).add(own) is Added.TAKEN


def test_the_table_is_bounded_and_the_same_flow_takes_no_room() -> None:
    table = table_of(flow(), flow(client_port=40002), limit=2)
    assert table.add(flow()) is Added.ADDED
    assert table.add(flow(client_port=40003)) is Added.FULL
    assert (len(table), set(table)) == (2, {flow(), flow(client_port=40002)})
    assert table.remove(flow())
    assert table.add(flow(client_port=40003)) is Added.ADDED


@pytest.mark.parametrize("each", [flow(), flow(V6), flow(loopback=True)])
def test_whose_packets_are_rewritten_can_be_asked_before_there_are_any(each: Flow) -> None:
    ends = ends_of(made.tcp(each.client, each.origin, (40001, 443)))
    other = ends_of(made.tcp(each.client, each.origin, (40002, 443)))
    assert ends is not None
    assert other is not None
    assert (table_of(each).has(ends), table_of(each).has(other)) == (True, False)


@pytest.mark.parametrize(("divided_above", "is_called_valid"), [(10_039, True), (10_040, False)])
def test_no_sum_is_computed_of_what_is_divided_on_its_way(divided_above: int, is_called_valid: bool) -> None:
    packet = made.tcp(*V4, (40001, 443), data=bytes(10_000))
    batch, address = bytearray(packet), bytearray(made.record(OUTBOUND))
    assert rewrite(batch, len(batch), address, 1, table_of(flow()), divided_above) == []
    assert bool(address[10] & TCP_VALID) is is_called_valid
    assert batch[36:38] == packet[36:38]


def test_a_removed_flow_leaves_nothing() -> None:
    table = table_of(flow(), flow(V6))
    assert flow() in table
    assert table.remove(flow())
    assert not table.remove(flow())
    assert not table.remove(flow(V6, origin_port=80))
    assert table.remove(flow(V6))
    assert (len(table), table.moves, flow() in table, "flow" in table) == (0, {}, False, False)


@pytest.mark.parametrize("each", [flow(), flow(V6)])
def test_the_gate_asks_whose_a_socket_is(each: Flow) -> None:
    table = table_of(each)
    assert table.flow_at_gate(local=each.client, peer=each.origin, peer_port=40001) == each
    assert table.flow_at_gate(local=each.client, peer=each.origin, peer_port=40002) is None


def test_on_loopback_the_gate_asks_with_the_programs_address_as_peer() -> None:
    each = flow(loopback=True)
    assert table_of(each).flow_at_gate(local=each.origin, peer=each.client, peer_port=40001) == each


@pytest.mark.parametrize(
    ("client", "origin", "port"), [(V4[0], V6[1], 1), (b"abc", b"abc", 1), (*V4, 65_536), (*V4, -1)]
)
def test_a_flow_is_of_one_family_and_of_real_ports(client: bytes, origin: bytes, port: int) -> None:
    with pytest.raises(ValueError):
        Flow(client=client, client_port=port, origin=origin, origin_port=1)
    with pytest.raises(ValueError):
        Flow(client=client, client_port=1, origin=origin, origin_port=port)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.builds(
                flow,
                st.sampled_from([V4, V4[::-1], V6, V6[::-1], (V4[0], V4[0])]),
                st.sampled_from([1, 2, GATE]),
                st.sampled_from([1, 2, GATE]),
                loopback=st.booleans(),
            ),
        )
    )
)
def test_whatever_is_added_and_removed_no_packet_has_two_fates(steps: list[tuple[bool, Flow]]) -> None:
    table, present = NatTable(gate_port=GATE, limit=4), set[Flow]()
    for add, each in steps:
        if add:
            outcome = table.add(each)
            assert outcome is not Added.FULL or len(present) == 4
            present |= {each} if outcome is Added.ADDED else set()
        else:
            assert table.remove(each) == (each in present)
            present.discard(each)
        assert set(table) == present
        assert len(table) == len(present) <= 4
        assert len(table.moves) == 2 * len(present)
