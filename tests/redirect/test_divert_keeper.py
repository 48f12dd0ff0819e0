"""The keeper's rounds, with real sockets where it looks for them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from divert_sandbox import ORIGIN_PORT, ORIGIN_V4, ORIGIN_V6, UPSTREAM, link_to_an_origin

from mitmsec.core.model import Endpoint, OnFailure, Transport
from mitmsec_redirect.divert_keeper import Keeper, Known, Rounds
from mitmsec_redirect.divert_library import HandleStats
from mitmsec_redirect.divert_signals import (
    AskTable,
    Choice,
    CutUnseen,
    Flow,
    FlowClosed,
    Overflowed,
    Report,
    TableTold,
    Which,
)
from mitmsec_redirect.filters import Own
from mitmsec_redirect.nat import Flow as NatFlow
from mitmsec_redirect.socket_table import DiagTable, OpenSocket, PsutilTable, packed

GATE_PORT = 8085


class House:
    """What the keeper calls."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.faults: list[Report] = []
        self.losses = dict.fromkeys(Which, HandleStats())
        self.diverted: dict[Flow, Known] = {}
        self.choice = Choice.DIVERT
        self.news = threading.Event()

    def tell(self, events: Any) -> None:
        self.told += events
        if self.told:
            self.news.set()

    def stats(self) -> Mapping[Which, HandleStats]:
        return self.losses

    def choose(self, pid: int, one: OpenSocket) -> Choice:
        assert pid == os.getpid()
        return self.choice

    def report(self, fault: Report) -> None:
        self.faults.append(fault)
        self.news.set()

    def keeper(self, table: DiagTable | PsutilTable, gate_port: int = GATE_PORT) -> Keeper:
        own = Own(gate_port=gate_port, upstream=UPSTREAM)
        return Keeper(table, own, Rounds(self.tell, self.stats, lambda: self.diverted, self.choose, self.report))


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def table() -> Iterator[DiagTable]:
    with contextlib.closing(DiagTable()) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


def flow_of(client: socket.socket) -> Flow:
    local, remote = Endpoint.of(*client.getsockname()), Endpoint.of(*client.getpeername())
    return Flow(transport=Transport.TCP, local=local, remote=remote)


def known(flow: Flow, *, loopback: bool = False) -> Known:
    return 7, NatFlow(
        client=packed(flow.local),
        client_port=flow.local.port,
        origin=packed(flow.remote),
        origin_port=flow.remote.port,
        loopback=loopback,
    )


@contextlib.contextmanager
def running(keeper: Keeper) -> Iterator[Keeper]:
    thread = threading.Thread(target=keeper.run)
    thread.start()
    yield keeper
    keeper.put(None)
    thread.join(10)
    assert not thread.is_alive()


def test_the_table_is_asked_and_its_answer_told(
    house: House, table: DiagTable, pair: tuple[socket.socket, socket.socket]
) -> None:
    keeper = house.keeper(table)
    with running(keeper):
        keeper.put(AskTable(number=3, flow=flow_of(pair[0])))
        assert house.news.wait(5)
    assert house.told == [TableTold(number=3, pid=os.getpid())]


def test_what_was_lost_is_told_once_and_how(house: House, table: DiagTable) -> None:
    keeper = house.keeper(table)
    house.losses = {Which.DATA: HandleStats(lost=2, passed=3), Which.SYNS: HandleStats(taken=9)}
    keeper.count_losses()
    keeper.count_losses()
    house.losses = {Which.DATA: HandleStats(lost=2, passed=4), Which.SYNS: HandleStats(taken=9, lost=1)}
    keeper.count_losses()
    assert house.told == [
        Overflowed(which=Which.DATA, count=2, passed=False),
        Overflowed(which=Which.DATA, count=3, passed=True),
        Overflowed(which=Which.DATA, count=1, passed=True),
        Overflowed(which=Which.SYNS, count=1, passed=False),
    ]


def test_the_last_losses_are_told_at_the_end(house: House, table: DiagTable) -> None:
    with running(house.keeper(table)):
        house.losses = {Which.SYNS: HandleStats(passed=1)}
    assert house.told == [Overflowed(which=Which.SYNS, count=1, passed=True)]


@pytest.mark.parametrize("loopback", [False, True])
def test_a_flow_is_over_when_neither_the_programs_socket_nor_the_gates_is_there(
    house: House, table: DiagTable, pair: tuple[socket.socket, socket.socket], loopback: bool
) -> None:
    keeper = house.keeper(table)
    client, accepted = pair
    flow = flow_of(client)
    keeper.sweep()
    house.diverted = {flow: known(flow, loopback=loopback)}
    keeper.sweep()
    assert house.told == []
    client.close()
    accepted.close()
    keeper.sweep()
    assert house.told == [FlowClosed(flow=flow, sequence=7)]


def test_a_flow_lives_as_long_as_the_gates_side_of_it(
    house: House, table: DiagTable, pair: tuple[socket.socket, socket.socket]
) -> None:
    """The real connection stands for the gate's socket and the program's peer: C:gate and O:c."""
    client, accepted = pair
    gate, there = Endpoint.of(*accepted.getsockname()), Endpoint.of(*client.getsockname())
    flow = Flow(
        transport=Transport.TCP,
        local=Endpoint(address=gate.address, port=there.port),
        remote=Endpoint(address=there.address, port=443),
    )
    keeper = house.keeper(table, gate_port=gate.port)
    house.diverted = {flow: known(flow)}
    keeper.sweep()
    assert house.told == []
    accepted.close()
    client.close()
    keeper.sweep()
    assert house.told == [FlowClosed(flow=flow, sequence=7)]


def cookie_of(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def cut(house: House, *socks: socket.socket) -> None:
    """A round in which these were found to have sent no SYN that anybody saw."""
    with contextlib.closing(DiagTable()) as table, running(house.keeper(table)) as keeper:
        keeper.put(CutUnseen(connected={cookie_of(sock): os.getpid() for sock in socks}))


def is_alive(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return sock.recv(9).startswith(b"HTTP")
    except ConnectionError:
        return False


@pytest.mark.root
@pytest.mark.parametrize("choice", Choice)
def test_connections_that_slipped_by_are_ended_unless_they_may_go(house: House, choice: Choice) -> None:
    house.choice = choice
    with (
        link_to_an_origin(),
        socket.create_connection((ORIGIN_V4, ORIGIN_PORT)) as slipped,
        socket.create_connection((ORIGIN_V6, ORIGIN_PORT)) as known,
    ):
        cut(house, slipped)
        assert is_alive(slipped) is (choice is Choice.LEAVE)
        assert is_alive(known)
    fault = Report(what="cut_unseen", failed=OnFailure.CLOSED, detail=f"to {ORIGIN_V4}:{ORIGIN_PORT}")
    assert house.faults == ([] if choice is Choice.LEAVE else [fault])


@pytest.mark.root
def test_own_connections_and_those_within_the_machine_are_never_ended(
    house: House, pair: tuple[socket.socket, socket.socket]
) -> None:
    cut(house, *pair)
    pair[0].sendall(b"x")
    assert pair[1].recv(9) == b"x"
    own = (ORIGIN_V4.replace("2", "1"), UPSTREAM.first)
    with link_to_an_origin(), socket.create_connection((ORIGIN_V4, ORIGIN_PORT), source_address=own) as upstream:
        cut(house, upstream)
        assert is_alive(upstream)
    assert house.faults == []


def test_where_nothing_can_slip_by_nothing_is_looked_for(
    house: House, pair: tuple[socket.socket, socket.socket]
) -> None:
    keeper = house.keeper(PsutilTable())
    with running(keeper):
        keeper.put(CutUnseen(connected={1: os.getpid()}))
    assert house.faults == []
    pair[0].sendall(b"x")
