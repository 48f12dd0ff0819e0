"""The way of diverted packets, and handles that follow each other, with handles whose other end is the test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from divert_packets import V4, Wire, address, tcp, until
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.divert_library import Batch, HandleStats
from mitmsec_redirect.divert_path import PRIORITIES, PRIORITY_FIRST, DataPath, Translator, without
from mitmsec_redirect.divert_records import RECORD_BYTES
from mitmsec_redirect.nat import Flow, NatTable
from mitmsec_redirect.packet import split

GATE_PORT = 8085
FLOW = Flow(client=V4[0], client_port=40000, origin=V4[1], origin_port=443)


class Wires:
    """Opens one after the other."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, Wire]] = []

    def __call__(self, text: str, priority: int) -> Wire:
        if text == "bad":
            raise OSError("no memory")
        self.opened.append((text, priority, Wire()))
        return self.opened[-1][2]


@pytest.fixture
def wires() -> Wires:
    return Wires()


@pytest.fixture
def table() -> NatTable:
    made = NatTable(gate_port=GATE_PORT)
    made.add(FLOW)
    return made


@pytest.fixture
def path(table: NatTable, wires: Wires) -> Iterator[DataPath]:
    made = DataPath(table, wires)
    yield made
    made.close()
    assert all(wire.is_closed for _, _, wire in wires.opened)


# --- batches ----------------------------------------------------------------------------------------------------------
def batch_of(packets: list[bytes]) -> tuple[Batch, int]:
    batch, offset = Batch(), 0
    for at, packet in enumerate(packets):
        offset = batch.put(at, offset, packet, bytes([at % 256]) * RECORD_BYTES)
    return batch, offset


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=20))
def test_what_is_dropped_leaves_no_gap(packets: list[tuple[bool, int]]) -> None:
    data = [tcp(1000 + at, 1, payload=b"x" * size) for at, (_, size) in enumerate(packets)]
    batch, length = batch_of(data)
    pieces = [(at, offset, size) for at, (offset, size, _) in enumerate(split(batch.view, length))]
    dropped = [piece for piece, (is_dropped, _) in zip(pieces, packets, strict=True) if is_dropped]
    count, length = without(batch, len(packets), length, dropped)
    kept = [at for at, (is_dropped, _) in enumerate(packets) if not is_dropped]
    assert bytes(batch.view[:length]) == b"".join(data[at] for at in kept)
    assert bytes(batch.address_view[: count * RECORD_BYTES]) == b"".join(bytes([at]) * RECORD_BYTES for at in kept)


def test_of_the_gates_packets_none_gets_out_that_belongs_to_no_flow(table: NatTable) -> None:
    stray = tcp(GATE_PORT, 50505)
    batch, length = batch_of([stray, tcp(40000, 443), tcp(40001, 443), stray, b"\xff" * 30])
    batch.addresses[: 5 * RECORD_BYTES] = address() * 5
    translator = Translator(table)
    count, length = translator.translate(batch, 5, length)
    assert (count, translator.strays) == (3, 2)
    assert bytes(batch.view[40:length]) == tcp(40001, 443) + b"\xff" * 30


def test_a_refusal_in_the_name_of_an_origin_with_the_gates_port_comes_in(table: NatTable) -> None:
    batch, length = batch_of([tcp(GATE_PORT, 50505)])  # its record does not say outbound
    assert Translator(table).translate(batch, 1, length) == (1, length)


def test_a_packet_with_options_is_translated_too(table: NatTable) -> None:
    plain = tcp(40000, 443, payload=b"x" * 20)
    with_options = b"\x46" + plain[1:2] + (len(plain) + 4).to_bytes(2) + plain[4:20] + b"\1\1\1\0" + plain[20:]
    batch, length = batch_of([with_options])
    assert Translator(table).translate(batch, 1, length) == (1, length)
    assert bytes(batch.view[12:20]) == V4[1] + V4[0]


# --- handles ----------------------------------------------------------------------------------------------------------
def test_packets_of_diverted_flows_are_turned_round_and_others_go_on(path: DataPath, wires: Wires) -> None:
    path.exchange("one")
    ((text, priority, wire),) = wires.opened
    assert (text, priority) == ("one", PRIORITY_FIRST)
    wire.give([(tcp(40000, 443), address()), (tcp(40001, 443), address())])
    until(lambda: len(wire.sent) == 2)
    assert wire.sent[0][0][12:20] == V4[1] + V4[0]
    assert wire.sent[1] == (tcp(40001, 443), address())


def test_the_old_handle_is_drained_and_closed_after_the_new_one_is_open(path: DataPath, wires: Wires) -> None:
    path.exchange("one")
    old = wires.opened[0][2]
    old.told, old.refuses = HandleStats(5, 1, 2), 1
    for _ in range(50):
        old.give([(tcp(40000, 443), address())])
    path.exchange("two")
    new = wires.opened[1][2]
    assert wires.opened[1][1] != wires.opened[0][1]
    until(lambda: old.is_closed)
    assert len(old.sent) == 50
    new.told = HandleStats(10, 0, 1)
    until(lambda: path.stats() == HandleStats(15, 1, 3))
    assert path.unsent == 50
    new.give([(tcp(GATE_PORT, 1), address())])
    until(lambda: path.strays == 1)
    assert path.failed == ""


def test_priorities_come_round(path: DataPath, wires: Wires) -> None:
    for number in range(PRIORITIES + 2):
        path.exchange(str(number))
    priorities = [priority for _, priority, _ in wires.opened]
    assert all(one != other for one, other in itertools.pairwise(priorities))
    assert min(priorities) == PRIORITY_FIRST - PRIORITIES + 1


def test_when_there_is_no_new_handle_the_old_one_stays(path: DataPath, wires: Wires) -> None:
    path.exchange("one")
    with pytest.raises(OSError, match="no memory"):
        path.exchange("bad")
    wire = wires.opened[0][2]
    wire.give([(tcp(40000, 443), address())])
    until(lambda: len(wire.sent) == 1)


def test_a_handle_that_fails_is_told_of(path: DataPath, wires: Wires) -> None:
    path.exchange("one")
    wires.opened[0][2].fail(OSError("gone"))
    until(lambda: path.failed != "")
    assert "gone" in path.failed
    until(lambda: wires.opened[0][2].is_closed)
    assert path.stats() == HandleStats()
    path.close()


def test_closing_sends_on_what_was_taken(path: DataPath, wires: Wires) -> None:
    path.exchange("one")
    wire = wires.opened[0][2]
    for _ in range(20):
        wire.give([(tcp(40000, 443), address())])
    path.close()
    assert len(wire.sent) == 20
    path.close()
