"""Windows is asked for its sockets as its documentation says, by a library object that answers like it."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from windows_structs import table_of

from mitmsec.core.model import Confidence, Endpoint, Transport
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.socket_table import Named, packed, pair_of
from mitmsec_redirect.windows_processes import Now
from mitmsec_redirect.windows_rows import TIME_WAIT, Kind, OwnedSocket
from mitmsec_redirect.windows_table import TRIES, WindowsTable

HERE, THERE = Endpoint.of("192.0.2.1", 50000), Endpoint.of("203.0.113.9", 443)
HERE6, THERE6 = Endpoint.of("2001:db8::1", 50000), Endpoint.of("2001:db8::9", 443)


def tcp(local: Endpoint, remote: Endpoint | None, pid: int | None, state: int = 5) -> OwnedSocket:
    return OwnedSocket(transport=Transport.TCP, local=local, remote=remote, pid=pid, state=state, created_ns=None)


def udp(local: str, port: int, pid: int, created_ns: int | None = None) -> OwnedSocket:
    end = Endpoint.of(local, port)
    return OwnedSocket(transport=Transport.UDP, local=end, remote=None, pid=pid, state=None, created_ns=created_ns)


class Iphlpapi:
    """Tells the size that is wanted where there is no room for the table, and grows by `growth` with each question."""

    def __init__(self, sockets: Sequence[OwnedSocket] = (), *, growth: int = 0, error: int = 0) -> None:
        self._sockets, self._growth, self._error = sockets, growth, error
        self.asked = 0

    def GetExtendedTcpTable(self, *arguments: Any) -> int:  # noqa: N802  # its name
        assert arguments[4] == 8, "TCP_TABLE_OWNER_MODULE_ALL"
        return self._table(Kind.TCP6_MODULE if arguments[3] == 23 else Kind.TCP4_MODULE, *arguments)

    def GetExtendedUdpTable(self, *arguments: Any) -> int:  # noqa: N802  # its name
        assert arguments[4] == 2, "UDP_TABLE_OWNER_MODULE"
        return self._table(Kind.UDP6_MODULE if arguments[3] == 23 else Kind.UDP4_MODULE, *arguments)

    def _table(self, kind: Kind, buffer: Any, size: Any, _sorted: int, _family: int, _class: int, zero: int) -> int:
        self.asked += 1
        assert zero == 0
        if self._error:
            return self._error
        told = [one for one in self._sockets if one.transport is kind.transport and one.local.is_v6 == kind.is_v6]
        table = table_of(kind, told, bytes(self._growth * self.asked))
        room, size._obj.value = size._obj.value, len(table)
        if buffer is None or room < len(table):
            return 122
        ctypes.memmove(buffer, table, len(table))
        return 0


def flow(local: Endpoint = HERE, remote: Endpoint = THERE, transport: Transport = Transport.TCP) -> Flow:
    return Flow(transport=transport, local=local, remote=remote)


def owner_of(table: WindowsTable, of: Flow) -> int | None:
    named = table.named(of)
    return None if named is None else named.pid


def test_the_owner_of_a_connection_is_who_has_both_of_its_ends() -> None:
    table = WindowsTable(
        Iphlpapi([tcp(HERE, None, 1, state=2), tcp(HERE, Endpoint.of("203.0.113.8", 443), 2), tcp(HERE, THERE, 3)])
    )
    assert owner_of(table, flow()) == 3
    assert owner_of(table, flow(Endpoint.of("192.0.2.1", 50001))) is None


def test_of_two_connections_from_one_port_each_is_told_by_its_own_address() -> None:
    """Who binds another address of the machine may have the same port, and call the same remote."""
    other = Endpoint.of("192.0.2.7", HERE.port)
    table = WindowsTable(Iphlpapi([tcp(other, THERE, 4), tcp(HERE, THERE, 3)]))
    assert (owner_of(table, flow()), owner_of(table, flow(other))) == (3, 4)


@pytest.mark.parametrize(
    ("began_ns", "named"),
    [
        (10**18, Named(3, Confidence.TABLE, 10**15 - 7)),
        (10**18 + 10**9, None),
        (None, Named(3, Confidence.INFERRED, 10**15 - 7)),  # it has ended, or may not be asked
    ],
)
def test_a_process_that_is_younger_than_the_socket_is_not_its_owner(began_ns: int | None, named: Named | None) -> None:
    made = msgspec.structs.replace(tcp(HERE, THERE, 3), created_ns=10**18)
    table = WindowsTable(Iphlpapi([made]), lambda _: began_ns, lambda: Now(10**15, 10**18 + 7))
    assert table.named(flow()) == named
    assert owner_of(table, flow()) == (None if named is None else 3)


def test_of_a_socket_whose_making_is_not_told_the_owner_is_inferred() -> None:
    table = WindowsTable(Iphlpapi([tcp(HERE, THERE, 3)]), lambda _: 10**18)
    assert table.named(flow()) == Named(3, Confidence.INFERRED)
    assert table.named(flow(HERE6, THERE6)) is None


def test_when_a_process_began_is_what_the_system_says() -> None:
    made = msgspec.structs.replace(tcp(HERE, THERE, os.getpid()), created_ns=time.time_ns() // 100 * 100)
    assert owner_of(WindowsTable(Iphlpapi([made])), flow()) == os.getpid()
    long_ago = msgspec.structs.replace(made, created_ns=10**18)
    assert owner_of(WindowsTable(Iphlpapi([long_ago])), flow()) is None
    nobody = msgspec.structs.replace(long_ago, pid=2**22 + 1)
    assert owner_of(WindowsTable(Iphlpapi([nobody])), flow()) == 2**22 + 1


def test_ipv6_is_asked_for_too_and_nobody_is_nobody() -> None:
    table = WindowsTable(Iphlpapi([tcp(HERE6, THERE6, 7), tcp(HERE, THERE, None)]))
    assert owner_of(table, flow(HERE6, THERE6)) == 7
    assert owner_of(table, flow()) is None
    table.close()


@pytest.mark.parametrize(("bound", "owner"), [("192.0.2.1", 9), ("0.0.0.0", 9), ("127.0.0.1", None)])
def test_of_udp_the_local_end_decides(bound: str, owner: int | None) -> None:
    table = WindowsTable(Iphlpapi([udp(bound, 50000, 9)]))
    assert owner_of(table, flow(transport=Transport.UDP)) == owner


LONG_AGO_NS = 10**18


@pytest.mark.parametrize(
    ("bound", "local", "named"),
    [
        ((("0.0.0.0", 1), ("::", 2)), HERE6, (2, Confidence.TABLE)),  # IPv4 alone cannot have sent it
        ((("0.0.0.0", 1), ("::", 2)), HERE, (1, Confidence.INFERRED)),  # IPv6 with IPv4 beside it can
        ((("::", 2),), HERE, (2, Confidence.TABLE)),
        ((("0.0.0.0", 1), ("192.0.2.1", 2)), HERE, (2, Confidence.INFERRED)),  # either of them
        ((("0.0.0.0", 1), ("0.0.0.0", 2)), HERE, (1, Confidence.INFERRED)),
        ((("0.0.0.0", 1), ("192.0.2.1", 1)), HERE, (1, Confidence.TABLE)),
    ],
)
def test_of_several_udp_sockets_on_one_port_nobody_is_told_for_sure(
    bound: Sequence[tuple[str, int]], local: Endpoint, named: tuple[int, Confidence]
) -> None:
    sockets = [udp(address, local.port, pid, LONG_AGO_NS) for address, pid in bound]
    found = WindowsTable(Iphlpapi(sockets), lambda _: LONG_AGO_NS).named(flow(local, THERE, Transport.UDP))
    assert found is not None
    assert (found.pid, found.confidence) == named


def test_connections_that_are_not_over_are_pairs() -> None:
    over = tcp(Endpoint.of("192.0.2.1", 50001), THERE, None, state=TIME_WAIT)
    table = WindowsTable(Iphlpapi([tcp(HERE, THERE, 3), tcp(HERE6, THERE6, 7), over, tcp(HERE, None, 1, state=2)]))
    assert table.pairs() == {
        pair_of(packed(local), local.port, packed(remote), remote.port)
        for local, remote in ((HERE, THERE), (HERE6, THERE6))
    }


def test_a_table_that_grows_meanwhile_is_asked_for_again() -> None:
    library = Iphlpapi([tcp(HERE, THERE, 3)], growth=15_000)
    assert owner_of(WindowsTable(library), flow()) == 3
    assert library.asked >= 2


def test_one_that_always_outgrows_its_buffer_is_given_up() -> None:
    library = Iphlpapi(growth=1_000_000)
    with pytest.raises(OSError, match="grows faster"):
        WindowsTable(library).pairs()
    assert library.asked == TRIES


def test_what_windows_refuses_is_told() -> None:
    with pytest.raises(OSError, match="error 87"):
        WindowsTable(Iphlpapi(error=87)).pairs()


def test_a_table_that_lies_is_told() -> None:
    class Liar(Iphlpapi):
        def GetExtendedTcpTable(self, buffer: Any, size: Any, *rest: Any) -> int:  # noqa: N802  # its name
            if buffer is None:
                size._obj.value = 8
                return 122
            ctypes.memset(buffer, 0xFF, len(buffer))
            return 0

    with pytest.raises(OSError, match="rows of 160 bytes promised"):
        WindowsTable(Liar()).pairs()


@pytest.mark.skipif(sys.platform == "win32", reason="it is there")
def test_elsewhere_there_is_none() -> None:
    with pytest.raises(OSError, match="on Windows only"):
        WindowsTable()


def test_windows_own_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Iphlpapi([tcp(HERE, THERE, 3)])
    monkeypatch.setattr(ctypes, "WinDLL", lambda _: library, raising=False)
    monkeypatch.setattr("mitmsec_redirect.windows_table._declared", lambda loaded: loaded)
    assert owner_of(WindowsTable(), flow()) == 3
