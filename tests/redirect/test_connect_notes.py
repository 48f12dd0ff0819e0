"""Connections are noted in connect(): real sockets of this process, by verdicts that this test gives it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mitmsec.core.model import Endpoint, OnFailure
from mitmsec_redirect import bpf, connect_notes
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.connect_notes import ConnectNotes
from mitmsec_redirect.records import Reason
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.sockdiag import CookieLookup
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import Verdict, entry

pytestmark = pytest.mark.root
SO_COOKIE, IPPROTO_MPTCP = 57, 262
ENDS_AT_ONCE = """
import os, socket, struct, sys
sys.stdin.readline()
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0], flush=True)
os._exit(0)
"""


def cookie_of(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """This thread in a network namespace of its own."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        os.setns(before, os.CLONE_NEWNET)
        os.close(before)


class Noting:
    """Verdicts, and notes by them."""

    def __init__(self, on_failure: OnFailure = OnFailure.OPEN, *, everything: bool = False) -> None:
        self.verdicts = Map.create(MapKind.HASH, 4, 8, 16, "ms_selected")
        self.runs = RunCgroups()
        self.notes = ConnectNotes.open(Selection(self.verdicts.fd, self.runs.fd, everything=everything), on_failure)

    def judge(self, verdict: Verdict, pid: int = 0) -> None:
        number = entry(time.monotonic_ns(), verdict)
        self.verdicts.update(struct.pack("=I", pid or os.getpid()), struct.pack("=Q", number))

    def close(self) -> None:
        self.notes.close()
        self.verdicts.close()
        self.runs.close()


@pytest.fixture
def noting() -> Iterator[Noting]:
    with contextlib.closing(Noting()) as made:
        yield made


@pytest.fixture(params=[("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)], ids=["v4", "v6"])
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    host, family = request.param
    with socket.create_server((host, 0), family=family) as made:
        yield made


@pytest.mark.parametrize("verdict", [Verdict.SELECTED, Verdict.UNDECIDED])
def test_who_is_selected_or_may_be_is_noted_with_its_verdict(
    noting: Noting, server: socket.socket, verdict: Verdict
) -> None:
    noting.judge(verdict)
    with socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as accepted:
        assert noting.notes.verdict_of(cookie_of(client)) == verdict
        assert noting.notes.verdict_of(cookie_of(accepted)) is None, "it did not connect"


@pytest.mark.parametrize("verdict", [None, Verdict.INHERITS, Verdict.SELECTED | Verdict.OWN_TRAFFIC])
def test_of_nobody_else_anything_is_noted(noting: Noting, server: socket.socket, verdict: Verdict | None) -> None:
    if verdict is not None:
        noting.judge(verdict)
    with socket.create_connection(server.getsockname()[:2]) as client:
        assert noting.notes.verdict_of(cookie_of(client)) is None


def test_everything_is_a_selection_and_can_become_one(noting: Noting, server: socket.socket) -> None:
    where = server.getsockname()[:2]
    noting.notes.change(OnFailure.OPEN, everything=True)
    with socket.create_connection(where) as client:
        assert noting.notes.verdict_of(cookie_of(client)) == Verdict(0)
    noting.notes.change(OnFailure.OPEN, everything=False)
    with socket.create_connection(where) as client:
        assert noting.notes.verdict_of(cookie_of(client)) is None


def test_a_process_that_ends_at_once_was_noted_all_the_same(noting: Noting, server: socket.socket) -> None:
    command = [sys.executable, "-I", "-S", "-c", ENDS_AT_ONCE, *map(str, server.getsockname()[:2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as brief:
        noting.judge(Verdict.SELECTED, brief.pid)
        cookie = int(brief.communicate(b"\n")[0])
    noting.verdicts.delete(struct.pack("=I", brief.pid))  # as the monitor does
    assert noting.notes.verdict_of(cookie) == Verdict.SELECTED


def test_a_socket_that_connects_anew_for_somebody_else_is_noted_no_longer(
    noting: Noting, server: socket.socket
) -> None:
    noting.judge(Verdict.SELECTED)
    with socket.socket(server.family) as sock:
        sock.connect(server.getsockname())
        assert noting.notes.verdict_of(cookie_of(sock)) == Verdict.SELECTED
        unspecified = struct.pack("=H", socket.AF_UNSPEC).ljust(16, b"\0")
        bpf._libc.connect(sock.fileno(), unspecified, len(unspecified))  # which disconnects it
        noting.judge(Verdict(0))
        sock.connect(server.getsockname())
        assert noting.notes.verdict_of(cookie_of(sock)) is None


def test_of_an_mptcp_connection_the_socket_is_noted_that_sends_its_packets(noting: Noting) -> None:
    noting.judge(Verdict.SELECTED)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as client,
        contextlib.closing(CookieLookup()) as sockets,
    ):
        client.connect(server.getsockname())
        sender = sockets.cookie_of(Endpoint.of(*client.getsockname()), Endpoint.of(*server.getsockname()))
        assert sender is not None
        assert noting.notes.verdict_of(sender) == Verdict.SELECTED


@pytest.mark.parametrize("on_failure", OnFailure)
def test_what_cannot_be_noted_is_counted_and_goes_as_on_failure_says(
    on_failure: OnFailure, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect_notes, "COOKIES_KIND", MapKind.HASH)  # the real one always makes room
    monkeypatch.setattr(connect_notes, "COOKIES_LIMIT", 1)
    with contextlib.closing(Noting(on_failure)) as noting, socket.create_connection(server.getsockname()[:2]):
        assert noting.notes.unnoted == {}, "of whom nobody has selected"
        noting.judge(Verdict.SELECTED)
        with socket.create_connection(server.getsockname()[:2]), socket.socket(server.family) as second:
            assert noting.notes.unnoted == {}
            answer = second.connect_ex(server.getsockname())
        assert answer == (errno.EPERM if on_failure is OnFailure.CLOSED else 0)
        assert noting.notes.unnoted == {Reason.NO_MEMORY: 1}


@pytest.mark.parametrize("on_failure", OnFailure)
def test_where_no_handle_is_it_goes_as_on_failure_says_and_who_is_not_judged_passes(
    on_failure: OnFailure, server: socket.socket
) -> None:
    """Another network namespace: there its packets pass unseen."""
    with contextlib.closing(Noting(on_failure)) as noting:
        with elsewhere(), socket.create_server(server.getsockname()[:2], family=server.family) as there:
            noting.judge(Verdict.UNDECIDED)
            socket.create_connection(there.getsockname()[:2]).close()
            noting.judge(Verdict.SELECTED)
            with socket.socket(server.family) as client:
                answer = client.connect_ex(there.getsockname())
                assert noting.notes.verdict_of(cookie_of(client)) is None
        assert answer == (errno.EPERM if on_failure is OnFailure.CLOSED else 0)
        assert noting.notes.unnoted == {Reason.OTHER_NETWORK_NAMESPACE: 1}


def test_among_everything_nobody_passes_uncounted_for_not_being_judged(server: socket.socket) -> None:
    """Open: closed would deny the whole machine's other namespaces."""
    with contextlib.closing(Noting(everything=True)) as noting:
        with elsewhere(), socket.create_server(server.getsockname()[:2], family=server.family) as there:
            noting.judge(Verdict.UNDECIDED)
            socket.create_connection(there.getsockname()[:2]).close()
        assert noting.notes.unnoted.get(Reason.OTHER_NETWORK_NAMESPACE, 0) >= 1


def test_closed_it_notes_nothing(noting: Noting, server: socket.socket) -> None:
    noting.judge(Verdict.SELECTED)
    runs = noting.notes.run_counts()
    assert set(runs) == {bpf.Attach.CONNECT4, bpf.Attach.CONNECT6}
    noting.notes.close()
    noting.notes.close()
    with socket.create_connection(server.getsockname()[:2]):
        pass
    assert noting.notes.run_counts() == {}
