"""First packets on their way in and out, through a handle that gives and takes what the test says."""

from __future__ import annotations

import struct

import pytest
from divert_packets import V4, Wire, address, syn, udp
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.divert_held import FirstPackets, Taken, flow_of, nat_flow
from mitmsec_redirect.divert_library import PACKETS_MOST, HandleShut
from mitmsec_redirect.divert_records import FLAGS_AT, RecordFlag
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.nat import Flow as NatFlow
from mitmsec_redirect.nat import NatTable

GATE_PORT = 8085


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def table() -> NatTable:
    return NatTable(gate_port=GATE_PORT)


def known_by_nat(taken: Taken) -> NatFlow:
    assert taken.ends is not None
    return nat_flow(taken, taken.ends)


def test_a_syn_is_taken_with_its_flow_its_number_and_its_interface(wire: Wire, table: NatTable) -> None:
    wire.give([(syn(sequence=77), address(interface=9)), (syn(v6=True), address(v6=True))])
    one, six = FirstPackets(wire, table).receive(0)
    local, remote = Endpoint.of("192.0.2.1", 40000), Endpoint.of("203.0.113.9", 443)
    assert one.ends is not None
    assert flow_of(one.ends) == Flow(transport=Transport.TCP, local=local, remote=remote)
    assert (one.sequence, one.interface) == (77, 9)
    assert six.ends is not None
    flow, known = flow_of(six.ends), nat_flow(six, six.ends)
    assert (str(flow.local), str(flow.remote)) == ("[2001:db8::1]:40000", "[2001:db8::9]:443")
    assert (known.client_port, known.origin_port) == (40000, 443)


def test_a_datagram_has_no_number(wire: Wire, table: NatTable) -> None:
    wire.give([(udp(b"x"), address())])
    (one,) = FirstPackets(wire, table).receive(0)
    assert one.ends is not None
    assert (flow_of(one.ends).transport, one.sequence) == (Transport.UDP, 0)


def test_a_flow_on_loopback_is_known_as_one(wire: Wire, table: NatTable) -> None:
    wire.give([(syn(), address(RecordFlag.OUTBOUND | RecordFlag.LOOPBACK)), (syn(), address())])
    assert [known_by_nat(one).loopback for one in FirstPackets(wire, table).receive(0)] == [True, False]


def test_nothing_came_or_nothing_will(wire: Wire, table: NatTable) -> None:
    first = FirstPackets(wire, table)
    assert first.receive(0) == []
    wire.shutdown()
    with pytest.raises(HandleShut):
        first.receive(0)


def test_what_is_no_packet_goes_on_as_it_is(wire: Wire, table: NatTable) -> None:
    wire.give([(b"\xff" * 30, address())])
    first = FirstPackets(wire, table)
    (one,) = first.receive(0)
    assert (one.ends, one.sequence) == (None, 0)
    first.refuse(one)
    first.flush()
    assert wire.sent == []
    first.put_back(one)
    first.flush()
    assert wire.sent == [(b"\xff" * 30, address())]


def test_a_syn_with_ip_options_is_diverted_too(wire: Wire, table: NatTable) -> None:
    plain = syn()
    longer = bytes([0x46, 0]) + struct.pack("!H", len(plain) + 4) + plain[4:20] + b"\x01\x01\x01\x00" + plain[20:]
    wire.give([(longer, address())])
    first = FirstPackets(wire, table)
    (one,) = first.receive(0)
    table.add(known_by_nat(one))
    first.divert(one)
    first.flush()
    ((diverted, _),) = wire.sent
    assert struct.unpack_from("!4s4s4xHH", diverted, 12) == (V4[1], V4[0], 40000, GATE_PORT)


def test_a_syn_goes_back_untouched_or_to_the_gate_if_its_flow_is_known(wire: Wire, table: NatTable) -> None:
    wire.give([(syn(), address()), (syn(port=40001), address())])
    first = FirstPackets(wire, table)
    known, other = first.receive(0)
    table.add(known_by_nat(known))
    first.divert(known)
    first.divert(other)
    first.put_back(known)
    assert wire.sent == []
    first.flush()
    first.flush()
    (diverted, flags), *untouched = wire.sent
    assert untouched == [(syn(port=40001), address()), (syn(), address())]
    assert struct.unpack_from("!4s4sHH", diverted, 12) == (
        bytes([203, 0, 113, 9]),
        bytes([192, 0, 2, 1]),
        40000,
        GATE_PORT,
    )
    assert not flags[FLAGS_AT] & RecordFlag.OUTBOUND


def test_a_refusal_comes_in_by_the_interface_that_the_syn_would_have_left_by(wire: Wire, table: NatTable) -> None:
    wire.give([(syn(), address(interface=9))])
    first = FirstPackets(wire, table)
    first.refuse(*first.receive(0))
    first.flush()
    ((answer, flags),) = wire.sent
    assert struct.unpack_from("!4s4sHH", answer, 12) == (V4[1], V4[0], 443, 40000)
    assert not flags[FLAGS_AT] & RecordFlag.OUTBOUND
    assert flags[16] == 9


def test_more_than_a_batch_goes_out_in_several_and_what_is_refused_is_counted(wire: Wire, table: NatTable) -> None:
    wire.give([(syn(), address())])
    first = FirstPackets(wire, table)
    (one,) = first.receive(0)
    for _ in range(PACKETS_MOST + 1):
        first.put_back(one)
    assert len(wire.sent) == PACKETS_MOST
    wire.refuses = 1
    first.flush()
    assert first.unsent == 1


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5))
def test_no_bytes_raise_and_none_are_lost(pieces: list[bytes]) -> None:
    wire, table = Wire(), NatTable(gate_port=GATE_PORT)
    wire.give([(piece, address()) for piece in pieces])
    first = FirstPackets(wire, table)
    taken = first.receive(0)
    assert b"".join(one.data for one in taken) == b"".join(pieces)
    for one in taken:
        first.put_back(one)
    first.flush()
    assert b"".join(data for data, _ in wire.sent) == b"".join(one.data for one in taken)
