"""The fragments of a diverted flow's packet all go to the gate, or none that could not."""

from __future__ import annotations

import made_packets as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packets import V4, V6

from mitmsec_redirect.fragments import Fragments
from mitmsec_redirect.nat import Flow, NatTable
from mitmsec_redirect.packet import Packet, parse

GATE, MORE = 8080, 0x2000
INBOUND_VALID = made.OUTBOUND_VALID ^ 0x02


def table_of(ends: tuple[bytes, bytes], *, loopback: bool = False) -> NatTable:
    table = NatTable(gate_port=GATE)
    table.add(Flow(client=ends[0], client_port=40001, origin=ends[1], origin_port=443, loopback=loopback))
    return table


def pieces(ends: tuple[bytes, bytes], ports: tuple[int, int], identification: int = 7) -> list[bytes]:
    """A segment of 140 bytes in three fragments."""
    whole = made.segment(*ends, ports, data=bytes(range(120)))
    cut = [(0, whole[:48]), (48, whole[48:96]), (96, whole[96:])]
    if len(ends[0]) == 4:
        return [
            made.v4(*ends, part, fragment=at // 8 | (MORE if at < 96 else 0), identification=identification)
            for at, part in cut
        ]
    return [made.v6(*ends, part, 6, [(44, made.fragment_body(at, at < 96, identification))]) for at, part in cut]


def go(
    fragments: Fragments, packet: bytes, table: NatTable, now_s: float = 0.0, flags: int = made.OUTBOUND_VALID
) -> tuple[bool, bytes, int]:
    buffer, address, view = bytearray(packet), made.record(flags), parse(packet)
    assert isinstance(view, Packet)
    taken = fragments.rewrite(buffer, 0, view, address, 0, table, now_s=now_s)
    return taken, bytes(buffer), address[10]


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (0, 1, 1, 2, 0)])
def test_later_fragments_follow_the_first_in_any_order(ends: tuple[bytes, bytes], order: tuple[int, ...]) -> None:
    client, origin = ends
    sent, due = pieces(ends, (40001, 443)), pieces((origin, client), (40001, GATE))
    fragments, table = Fragments(), table_of(ends)
    for at in order:
        assert go(fragments, sent[at], table) == (True, due[at], INBOUND_VALID)
    assert len(fragments) == 1


def test_on_loopback_they_stay_outbound_with_their_addresses() -> None:
    sent, due = pieces(V4, (40001, 443)), pieces(V4, (40001, GATE))
    fragments, table = Fragments(), table_of(V4, loopback=True)
    assert [go(fragments, packet, table) for packet in sent] == [(True, piece, made.OUTBOUND_VALID) for piece in due]


def test_a_later_fragment_whose_first_was_not_seen_is_left() -> None:
    _, later, _ = pieces(V4, (40001, 443))
    assert go(Fragments(), later, table_of(V4)) == (False, later, made.OUTBOUND_VALID)


def test_fragments_of_other_flows_identifications_and_protocols_are_left() -> None:
    fragments, table = Fragments(), table_of(V4)
    assert go(fragments, pieces(V4, (40001, 443))[0], table)[0]
    other = pieces(V4, (40001, 443), identification=8)[1]
    udp = made.v4(*V4, bytes(48), made.UDP, fragment=6 | MORE)
    back = pieces(V4[::-1], (40001, 443))[1]
    for packet in (other, udp, back, *pieces(V4, (40002, 443), identification=9)):
        assert go(fragments, packet, table) == (False, packet, made.OUTBOUND_VALID)


def test_whole_packets_go_the_ordinary_way() -> None:
    client, origin = V4
    sent, due = made.tcp(client, origin, (40001, 443)), made.tcp(origin, client, (40001, GATE))
    fragments = Fragments()
    assert go(fragments, sent, table_of(V4)) == (True, due, INBOUND_VALID)
    assert len(fragments) == 0


def test_a_first_fragment_is_forgotten_after_its_time() -> None:
    first, later, last = pieces(V4, (40001, 443))
    fragments, table = Fragments(age_s=30), table_of(V4)
    assert go(fragments, first, table, now_s=100)[0]
    assert go(fragments, later, table, now_s=129.9)[0]
    assert not go(fragments, last, table, now_s=130)[0]
    assert len(fragments) == 0


def test_a_first_fragment_sent_again_is_remembered_anew() -> None:
    first, later, _ = pieces(V4, (40001, 443))
    fragments, table = Fragments(age_s=30), table_of(V4)
    assert go(fragments, first, table, now_s=0)[0]
    assert go(fragments, first, table, now_s=20)[0]
    assert go(fragments, later, table, now_s=40)[0]


def test_the_memory_is_bounded_and_the_oldest_makes_room() -> None:
    fragments, table = Fragments(limit=2), table_of(V4)
    sent = [pieces(V4, (40001, 443), identification) for identification in (1, 2, 3)]
    for first, *_ in sent:
        assert go(fragments, first, table)[0]
    assert len(fragments) == 2
    assert [go(fragments, later, table)[0] for _, later, _ in sent] == [False, True, True]


def test_fragments_that_overlap_pass_as_they_are() -> None:
    """Nobody here judges which bytes count; the receiver does."""
    client, origin = V4
    fragments, table = Fragments(), table_of(V4)
    assert go(fragments, pieces(V4, (40001, 443))[0], table)[0]
    over = made.v4(client, origin, bytes(64), fragment=1 | MORE)
    assert go(fragments, over, table) == (True, made.v4(origin, client, bytes(64), fragment=1 | MORE), INBOUND_VALID)
    another_first = pieces(V4, (40002, 443))[0]
    assert go(fragments, another_first, table) == (False, another_first, made.OUTBOUND_VALID)


@settings(deadline=None)
@given(st.lists(st.tuples(made.packets() | made.spoilt(), st.floats(0, 100)), max_size=12))
def test_no_packets_raise_and_the_memory_stays_small(sent: list[tuple[bytes, float]]) -> None:
    fragments, table = Fragments(limit=3), table_of(V4)
    for packet, now_s in sent:
        view = parse(packet)
        if isinstance(view, Packet):
            buffer, address = bytearray(packet), made.record()
            if not fragments.rewrite(buffer, 0, view, address, 0, table, now_s=now_s):
                assert (bytes(buffer), address) == (packet, made.record())
        assert len(fragments) <= 3
