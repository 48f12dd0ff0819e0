"""The system's table of sockets, with real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.socket_table import DiagTable, PsutilTable, SocketTable, holder_of, packed, pair_of, system_table

Connection = tuple[socket.socket, socket.socket]


@contextlib.contextmanager
def connection(family: socket.AddressFamily, address: str, listen: str) -> Iterator[Connection]:
    listen_family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.create_server((listen, 0), family=listen_family) as server, socket.socket(family) as client:
        client.connect((address, server.getsockname()[1]))
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


def flow_of(client: socket.socket) -> Flow:
    local, remote = (Endpoint.of(*name[:2]) for name in (client.getsockname(), client.getpeername()))
    return Flow(transport=Transport.TCP, local=local, remote=remote)


def pair(flow: Flow) -> bytes:
    return pair_of(packed(flow.local), flow.local.port, packed(flow.remote), flow.remote.port)


@pytest.fixture(params=[DiagTable, PsutilTable])
def table(request: pytest.FixtureRequest) -> Iterator[SocketTable]:
    with contextlib.closing(request.param()) as made:
        yield made


FAMILIES = pytest.mark.parametrize(
    ("family", "address", "listen"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
    ids=["v4", "v6", "mapped"],
)


@FAMILIES
def test_the_owner_of_a_connection_is_found(
    table: SocketTable, family: socket.AddressFamily, address: str, listen: str
) -> None:
    with connection(family, address, listen) as (client, accepted):
        flow = flow_of(client)
        assert table.owner_of(flow) == os.getpid()
        client.close()
        accepted.close()
        assert table.owner_of(flow) is None


def test_the_owner_of_a_socket_that_sent_a_datagram_and_never_connected_is_found(table: SocketTable) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sender.sendto(b"x", ("127.0.0.1", 9))
        local, remote = Endpoint.of(*sender.getsockname()), Endpoint.of("127.0.0.1", 443)
        assert table.owner_of(Flow(transport=Transport.UDP, local=local, remote=remote)) == os.getpid()


@FAMILIES
def test_a_connection_is_listed_until_it_is_over(
    table: SocketTable, family: socket.AddressFamily, address: str, listen: str
) -> None:
    with connection(family, address, listen) as (client, accepted):
        there, back = pair(flow_of(client)), pair(flow_of(accepted))
        assert {there, back} <= table.pairs()
        client.close()
        assert back in table.pairs()  # it has not ended its side
        accepted.close()
        assert not {there, back} & table.pairs()  # TIME_WAIT is over enough


def test_listeners_are_no_connections(table: SocketTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not any(one[:2] == port.to_bytes(2) for one in table.pairs())


def test_many_sockets_are_listed_in_several_answers() -> None:
    with contextlib.ExitStack() as held, contextlib.closing(DiagTable()) as table:
        made = [held.enter_context(connection(socket.AF_INET, "127.0.0.1", "127.0.0.1")) for _ in range(300)]
        assert {pair(flow_of(client)) for client, _ in made} <= table.pairs()


@pytest.mark.root
@FAMILIES
def test_a_connection_can_be_ended_once(family: socket.AddressFamily, address: str, listen: str) -> None:
    with connection(family, address, listen) as (client, _), contextlib.closing(DiagTable()) as table:
        flow = flow_of(client)
        (one,) = (found for found in table.open_sockets() if found.pair == pair(flow))
        assert one.remote == flow.remote
        assert table.destroy(one)
        assert not table.destroy(one)
        with pytest.raises(ConnectionError):
            client.sendall(b"x")


def test_who_may_not_end_connections_is_told_so() -> None:
    code = """
import os, sys
sys.path[:0] = eval(sys.argv[1])
from mitmsec_redirect.socket_table import DiagTable
table = DiagTable()
one = table.open_sockets()[0]
os.setuid(65534)
try:
    table.destroy(one)
except PermissionError as error:
    print(error.strerror)
"""
    with connection(socket.AF_INET, "127.0.0.1", "127.0.0.1"):
        told = subprocess.run([sys.executable, "-c", code, repr(sys.path)], capture_output=True, text=True)
    assert told.stdout == "end a connection: Operation not permitted\n"


def test_of_a_socket_that_nobody_holds_there_is_no_holder() -> None:
    assert holder_of(1) is None


def test_linux_asks_the_kernel_itself() -> None:
    with contextlib.closing(system_table()) as table:
        assert isinstance(table, DiagTable)
