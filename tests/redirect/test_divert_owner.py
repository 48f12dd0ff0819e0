"""Whose a SYN is: cookies of real sockets, and processes as they are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from mitmsec.core.model import Caller, Confidence, Endpoint, Process, Transport
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.divert_linux import LinuxDivert
from mitmsec_redirect.divert_owner import SOURCE, Owners
from mitmsec_redirect.divert_seams import Call, SocketTold
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.packet import TCP, Ends
from mitmsec_redirect.sockdiag import CookieLookup

SO_COOKIE = 57


def own_cgroup() -> int:
    """The id of the cgroup that this process is in: the number of its folder."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line[3:] for line in lines if line.startswith("0::"))
    return os.stat(cgroup2_root() / path.lstrip("/")).st_ino


def ends(local: Endpoint, remote: Endpoint) -> Ends:
    return Ends(
        protocol=TCP,
        transport=20,
        source=socket.inet_aton(local.address),
        destination=socket.inet_aton(remote.address),
        source_port=local.port,
        destination_port=remote.port,
    )


def read(
    owners: Owners, pid: int, uid: int, connected_ns: int | None, named: Confidence = Confidence.KERNEL
) -> Process:
    return owners.owner(pid, uid, connected_ns, named).process


@pytest.fixture
def owners() -> Iterator[Owners]:
    with contextlib.closing(LinuxDivert().owners()) as made:
        yield made


def test_a_socket_is_known_by_its_cookie_and_its_makers_user(owners: Owners) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        local, remote = Endpoint.of(*client.getsockname()), Endpoint.of(*client.getpeername())
        assert owners.socket_of(ends(local, remote), 0) == SocketTold(Transport.TCP, cookie, os.getuid(), own_cgroup())
        assert owners.socket_of(ends(local, Endpoint.of("127.0.0.9", 1)), 0) == SocketTold(Transport.TCP)


class NoRoom:
    """A netlink socket whose answer finds no room."""

    def __init__(self, sock: socket.socket) -> None:
        self.send = sock.send

    def recv(self, size: int) -> bytes:
        raise OSError(errno.ENOBUFS, "no room for the answer")


def test_where_the_kernel_does_not_answer_that_is_told_and_the_next_socket_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = CookieLookup()
    with contextlib.closing(Owners(OneProcess(), lookup)) as owners, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            of = ends(Endpoint.of(*client.getsockname()), Endpoint.of(*client.getpeername()))
            with monkeypatch.context() as patched:
                patched.setattr(lookup, "_sock", NoRoom(lookup._sock))
                told = owners.socket_of(of, 0)
            assert (told.cookie, told.fault) == (None, "[Errno 105] no room for the answer")
            told = owners.socket_of(of, 0)
            cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
            assert (told.cookie, told.fault) == (cookie, "")


def test_a_living_process_is_read_and_whoever_named_it_says_how_sure_that_is(owners: Owners) -> None:
    kernel = read(owners, os.getpid(), 0, time.monotonic_ns())
    assert (kernel.pid, kernel.exe, kernel.source) == (os.getpid(), os.path.realpath(sys.executable), SOURCE)
    assert kernel.confidence is Confidence.KERNEL
    assert kernel.sha256 == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    assert read(owners, os.getpid(), 0, None, Confidence.TABLE).confidence is Confidence.TABLE


def test_a_process_that_has_ended_is_not_made_up(owners: Owners) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    for connected_ns in (time.monotonic_ns(), None):
        process = read(owners, done.pid, 12345, connected_ns)
        assert (process.exe, process.user, process.confidence) == (None, "12345", Confidence.INFERRED)


def test_a_process_that_began_after_the_connection_is_not_its_owner(owners: Owners) -> None:
    with subprocess.Popen(["sleep", "10"]) as later:
        process = read(owners, later.pid, 0, time.monotonic_ns() - 5_000_000_000)
        later.kill()
    assert (process.exe, process.confidence) == (None, Confidence.INFERRED)


class OneProcess:
    """Processes of a system that has no users by number and no cookies."""

    is_closed, refreshed = False, 0

    def refresh(self) -> None:
        self.refreshed += 1

    def whose(
        self, pid: int, uid: int, comm: str, connected_ns: int | None = None, caller: Caller | None = None
    ) -> Owner:
        return Owner(Process(pid=pid, user=str(uid), confidence=Confidence.KERNEL))

    def close(self) -> None:
        self.is_closed = True


def test_where_a_system_tells_nothing_of_sockets_the_process_is_told_all_the_same() -> None:
    processes = OneProcess()
    owners = Owners(processes)
    assert owners.socket_of(ends(Endpoint.of("192.0.2.1", 1), Endpoint.of("192.0.2.2", 2)), 0) == SocketTold(
        Transport.TCP
    )
    told = read(owners, 7, 5, 1)
    assert (told.pid, told.user, told.source, told.confidence) == (7, "5", SOURCE, Confidence.KERNEL)
    owners.refresh()
    owners.close()
    assert (processes.refreshed, processes.is_closed) == (1, True)


@pytest.mark.parametrize("named", Confidence)
def test_a_process_is_no_surer_than_its_pid(named: Confidence) -> None:
    assert read(Owners(OneProcess()), 7, 5, 1, named).confidence is named


def test_where_calls_are_noted_nobody_else_is_told_at_kernel_and_the_user_is_who_called() -> None:
    owners, caller = Owners(OneProcess(), uid_of=lambda pid, uid: 9), Caller(start_ns=1)
    call = Call(7, 5, "curl", 1, Endpoint.of("192.0.2.2", 443), caller)
    owners.calls = {3: call}.get
    told = owners.owner(7, 0, 1, Confidence.KERNEL, call).process
    assert (told.user, told.confidence) == ("5", Confidence.KERNEL)
    for other in (None, replace(call, caller=None), replace(call, pid=8)):
        assert owners.owner(7, 0, 1, Confidence.KERNEL, other).process.confidence is Confidence.INFERRED
    assert owners.owner(7, 0, 1, Confidence.KERNEL, replace(call, pid=8)).process.user == "9"
