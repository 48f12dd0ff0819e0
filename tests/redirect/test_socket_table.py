"""The system's table of sockets, with real sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mitmsec.core.model import Confidence, Endpoint, Transport
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.open_listeners import LISTENING
from mitmsec_redirect.socket_table import NLMSG_DONE, DiagTable, Named, holder_of, holders_of, packed, pair_of

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


@pytest.fixture
def table() -> Iterator[DiagTable]:
    with contextlib.closing(DiagTable()) as made:
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
    table: DiagTable, family: socket.AddressFamily, address: str, listen: str
) -> None:
    with connection(family, address, listen) as (client, accepted):
        flow = flow_of(client)
        assert table.named(flow) == Named(os.getpid(), Confidence.TABLE)
        client.close()
        accepted.close()
        assert table.named(flow) is None


def test_the_owner_of_a_socket_that_sent_a_datagram_and_never_connected_is_found(table: DiagTable) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sender.sendto(b"x", ("127.0.0.1", 9))
        local, remote = Endpoint.of(*sender.getsockname()), Endpoint.of("127.0.0.1", 443)
        assert table.named(Flow(transport=Transport.UDP, local=local, remote=remote)) == Named(os.getpid())


@FAMILIES
def test_a_connection_is_listed_until_it_is_over(
    table: DiagTable, family: socket.AddressFamily, address: str, listen: str
) -> None:
    with connection(family, address, listen) as (client, accepted):
        there, back = pair(flow_of(client)), pair(flow_of(accepted))
        assert {there, back} <= table.pairs()
        client.close()
        assert back in table.pairs()  # it has not ended its side
        accepted.close()
        assert not {there, back} & table.pairs()  # TIME_WAIT is over enough


def test_listeners_are_no_connections(table: DiagTable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not any(one[:2] == port.to_bytes(2) for one in table.pairs())


def test_many_sockets_are_listed_in_several_answers() -> None:
    with contextlib.ExitStack() as held, contextlib.closing(DiagTable()) as table:
        made = [held.enter_context(connection(socket.AF_INET, "127.0.0.1", "127.0.0.1")) for _ in range(300)]
        assert {pair(flow_of(client)) for client, _ in made} <= table.pairs()


class BrokenOff:
    """A netlink socket that has no room for the answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.send = sock.send

    def recv(self, size: int) -> bytes:
        raise OSError(errno.ENOBUFS, "no room for the answer")


def test_what_is_left_of_an_answer_that_broke_off_is_not_taken_for_the_next_one(
    table: DiagTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing in a table is taken for ended: the newest, where each table is that of the question before."""
    with monkeypatch.context() as patched:
        patched.setattr(table, "_sock", BrokenOff(table._sock))
        with pytest.raises(OSError, match="no room"):
            table.open_sockets(LISTENING)
    with contextlib.suppress(OSError):  # the kernel is not through with that one
        table.pairs()
    for _ in range(3):
        with connection(socket.AF_INET6, "::1", "::1") as (client, _):
            assert pair(flow_of(client)) in table.pairs()


class EndsWith:
    """A netlink socket whose dumps the kernel ends with this."""

    def __init__(self, sock: socket.socket, code: int) -> None:
        self.sock, self.code, self.send = sock, code, sock.send

    def recv(self, size: int) -> bytes:
        data = bytearray(self.sock.recv(size))
        at = 0
        while at < len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == NLMSG_DONE:
                struct.pack_into("=i", data, at + 16, self.code)
            at += (length + 3) & ~3
        return bytes(data)


def test_a_table_that_the_kernel_did_not_list_to_its_end_is_none(
    table: DiagTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(table, "_sock", EndsWith(table._sock, -errno.ENOMEM))
        with pytest.raises(OSError, match="list sockets: Cannot allocate memory") as raised:
            table.pairs()
        assert raised.value.errno == errno.ENOMEM
    with connection(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, _):
        assert pair(flow_of(client)) in table.pairs()


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
(one,) = (found for found in table.open_sockets() if found.pair.hex() == sys.argv[2])
os.setuid(65534)
try:
    table.destroy(one)
except PermissionError as error:
    print(error.strerror)
"""
    # A socket of this test's own: one of the table's others may have ended by then, and the kernel says so first.
    with connection(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, _):
        arguments = [repr(sys.path), pair(flow_of(client)).hex()]
        told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("end a connection: Operation not permitted\n", "")


def test_of_a_socket_that_nobody_holds_there_is_no_holder() -> None:
    assert holder_of(1) is None


def test_whoever_holds_many_sockets_is_found_in_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can have thousands that connect, and a diverter is to be replaced meanwhile."""
    looks: list[object] = []
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: looks.append(path) or listed(path))
    sockets = [socket.socket() for _ in range(50)]
    inodes = {os.fstat(one.fileno()).st_ino for one in sockets}
    try:
        assert holders_of(inodes | {1}) == dict.fromkeys(inodes, os.getpid())
        assert looks.count("/proc") == 1
    finally:
        for one in sockets:
            one.close()
    assert holders_of(inodes) == {}
