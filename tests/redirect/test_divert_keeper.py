"""The keeper's rounds, with real sockets where it looks for them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from divert_sandbox import ORIGIN_PORT, ORIGIN_V4, ORIGIN_V6, UPSTREAM, link_to_an_origin

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Transport
from mitmsec_redirect import divert_keeper
from mitmsec_redirect.divert_keeper import CUT_TRIES, Keeper, Known, Rounds
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
from mitmsec_redirect.socket_table import STATES, DiagTable, Named, OpenSocket, SocketTable, packed

GATE_PORT = 8085


class House:
    """What the keeper calls."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.faults: list[Report] = []
        self.losses = dict.fromkeys(Which, HandleStats())
        self.diverted: dict[Flow, Known] = {}
        self.choice = Choice.DIVERT
        self.gone: set[int] = set()
        self.news, self.refreshed = threading.Event(), threading.Event()

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

    def keeper(self, table: SocketTable, gate_port: int = GATE_PORT) -> Keeper:
        own = Own(gate_port=gate_port, upstream=UPSTREAM)
        calls = (self.tell, self.stats, lambda: self.diverted, self.choose, self.report, self.refresh)
        return Keeper(table, own, Rounds(*calls, lambda number: number not in self.gone))

    def refresh(self) -> None:
        self.refreshed.set()


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


class NothingSlipsBy:
    """A table of Windows' kind."""

    def __init__(self, told: Named | OSError | None = None) -> None:
        self.told = told

    def named(self, flow: Flow) -> Named | None:
        if isinstance(self.told, OSError):
            raise self.told
        return self.told

    def pairs(self) -> frozenset[bytes]:
        return frozenset()

    def close(self) -> None:
        """Nothing is held."""


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


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (None, TableTold(number=3, pid=None)),
        (OSError("iphlpapi.dll: error 8"), TableTold(number=3, pid=None, fault="iphlpapi.dll: error 8")),
        (
            Named(8, Confidence.INFERRED, 5),
            TableTold(number=3, pid=8, confidence=Confidence.INFERRED, connected_ns=5),
        ),
    ],
)
def test_how_far_the_tables_word_holds_is_told_with_it(
    house: House, pair: tuple[socket.socket, socket.socket], named: Named | OSError | None, told: TableTold
) -> None:
    with running(house.keeper(NothingSlipsBy(named))) as keeper:
        keeper.put(AskTable(number=3, flow=flow_of(pair[0])))
        assert house.news.wait(5)
    assert house.told == [told]


def test_a_question_that_nobody_waits_for_any_more_is_not_answered(
    house: House, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Each takes tens of milliseconds, in which the others wait."""
    house.gone = {3}
    with running(house.keeper(NothingSlipsBy(Named(8)))) as keeper:
        for number in (3, 4):
            keeper.put(AskTable(number=number, flow=flow_of(pair[0])))
        assert house.news.wait(5)
    assert [told.number for told in house.told] == [4]


def test_who_begins_and_who_ends_is_looked_at_all_the_time(house: House, table: DiagTable) -> None:
    with running(house.keeper(table)):
        for _ in range(2):
            assert house.refreshed.wait(5)
            house.refreshed.clear()


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


class Unreadable(DiagTable):
    """The kernel does not answer, so often; then it does."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def open_sockets(self, states: int = STATES) -> list[OpenSocket]:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError(errno.ENOBUFS, "no room for the answer")
        return super().open_sockets(states)


def test_a_table_that_cannot_be_swept_is_told_and_swept_the_next_time(
    house: House, pair: tuple[socket.socket, socket.socket]
) -> None:
    flow = flow_of(pair[0])
    house.diverted = {flow: known(flow)}
    for sock in pair:
        sock.close()
    with contextlib.closing(Unreadable(2)) as table:
        keeper = house.keeper(table)
        keeper.sweep()
        keeper.sweep()
        assert house.told == []
        assert [(one.what, one.failed) for one in house.faults] == [("flows_not_swept", OnFailure.OPEN)] * 2
        assert "no room for the answer" in house.faults[0].detail
        keeper.sweep()
    assert house.told == [FlowClosed(flow=flow, sequence=7)]
    assert len(house.faults) == 2


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
@pytest.mark.parametrize(("failures", "is_cut"), [(1, True), (CUT_TRIES, False)])
def test_who_slipped_by_is_looked_for_again_and_told_of_when_that_is_no_use(
    house: House, failures: int, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divert_keeper, "LOOK_S", 0.01)
    with link_to_an_origin(), socket.create_connection((ORIGIN_V4, ORIGIN_PORT)) as slipped:
        with contextlib.closing(Unreadable(failures)) as table, running(house.keeper(table)) as keeper:
            keeper.put(CutUnseen(connected={cookie_of(slipped): os.getpid()}))
        assert is_alive(slipped) is not is_cut
    told = Report(what="cut_unseen", failed=OnFailure.CLOSED, detail=f"to {ORIGIN_V4}:{ORIGIN_PORT}")
    assert house.faults == [told] if is_cut else [one.what for one in house.faults] == ["not_cut"]


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
    keeper = house.keeper(NothingSlipsBy())
    with running(keeper):
        keeper.put(CutUnseen(connected={1: os.getpid()}))
    assert house.faults == []
    pair[0].sendall(b"x")
