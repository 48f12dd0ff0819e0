"""Who calls is noted in connect(): real sockets of this process and others, all over the machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from descriptors import descriptors
from divert_packets import until
from divert_sandbox import ORIGIN_PORT, ORIGIN_V4, Divert, link_to_an_origin

from mitmsec.core.model import Confidence, Process
from mitmsec_redirect import call_programs, kernel_types, proc_files, records, served_steps
from mitmsec_redirect.bpf import Map
from mitmsec_redirect.call_notes import CallNotes
from mitmsec_redirect.callers import start_ticks
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.divert_linux import LinuxDivert
from mitmsec_redirect.divert_seams import Call
from mitmsec_redirect.packet import UDP, Ends

pytestmark = pytest.mark.root
SO_COOKIE = 57
SLEEP = "/bin/sleep"
SENDS = """
import socket, sys
socket.socket(fileno=int(sys.argv[1])).sendto(b"initial", ("127.0.0.2", 443))
"""
CONNECTS_AND_EXECUTES = """
import os, socket, sys
sock = socket.socket()
sock.set_inheritable(True)
sock.setblocking(False)
sock.connect_ex((sys.argv[1], int(sys.argv[2])))
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def notes() -> Iterator[CallNotes]:
    with contextlib.closing(CallNotes.open(cgroup2_root())) as made:
        yield made


def cookie_of(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_connects_is_noted_with_program_and_time(notes: CallNotes, family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server, socket.socket(family) as client:
        before_ns = time.monotonic_ns()
        client.connect(server.getsockname())
        call = notes.call_of(cookie_of(client))
        assert call is not None
        assert (call.pid, call.uid) == (os.getpid(), os.getuid())
        assert call.comm == Path("/proc/self/comm").read_text().strip()
        assert before_ns <= call.connected_ns <= time.monotonic_ns()
        status = proc_files.status_of_pid(os.getpid())
        assert call.caller is not None
        assert status is not None
        assert start_ticks(call.caller) == status.start_ticks
        assert call.caller.inode == os.stat("/proc/self/exe").st_ino
        assert notes.call_of(cookie_of(server)) is None


def test_of_udp_only_what_may_be_quic_is_noted(notes: CallNotes) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as quic, socket.socket(type=socket.SOCK_DGRAM) as dns:
        quic.connect(("127.0.0.1", 443))
        dns.connect(("127.0.0.1", 53))
        assert notes.call_of(cookie_of(quic)) is not None
        assert notes.call_of(cookie_of(dns)) is None


def test_of_a_call_that_cannot_be_noted_no_earlier_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was given a socket calls, and the kernel has no room for that: it was not who called before."""
    monkeypatch.setattr(call_programs, "OR_INSTEAD", served_steps.UNLESS_THERE)  # so it fails where there is one
    with contextlib.closing(CallNotes.open(cgroup2_root())) as notes, socket.socket(type=socket.SOCK_DGRAM) as sock:
        for host, is_noted in (("127.0.0.1", True), ("127.0.0.2", False), ("127.0.0.3", True)):
            sock.connect((host, 443))
            call = notes.call_of(cookie_of(sock))
            assert (call is not None) is is_noted
            assert call is None or call.remote.address == host


def test_without_the_kernels_types_a_caller_is_told_by_its_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_types, "process_offsets", lambda: None)
    with contextlib.closing(CallNotes.open(cgroup2_root())) as notes, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            call = notes.call_of(cookie_of(client))
        assert call is not None
        assert (call.pid, call.caller) == (os.getpid(), None)


def test_what_cannot_be_attached_leaves_nothing_behind(tmp_path: Path) -> None:
    before = len(descriptors())
    with pytest.raises(OSError, match="attach"):
        CallNotes.open(tmp_path)
    assert len(descriptors()) == before


def test_who_lets_go_of_a_udp_socket_is_not_told_as_who_sends_from_it_to_somebody_else(notes: CallNotes) -> None:
    with contextlib.closing(LinuxDivert().owners()) as owners, socket.socket(type=socket.SOCK_DGRAM) as sock:
        owners.calls = notes.call_of
        sock.connect(("127.0.0.1", 443))
        told = owners.socket_of(udp_ends(sock, "127.0.0.1"), 0)
        assert (told.cookie, told.call) == (cookie_of(sock), notes.call_of(cookie_of(sock)))
        assert told.call is not None
        nobody = struct.pack("=H14x", socket.AF_UNSPEC)
        assert ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), nobody, len(nobody)) == 0
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", SENDS, str(sock.fileno())], pass_fds=[sock.fileno()]):
            pass
        told = owners.socket_of(udp_ends(sock, "127.0.0.2"), 0)
        assert (told.cookie, told.call) == (cookie_of(sock), None)


def udp_ends(sock: socket.socket, remote: str) -> Ends:
    address, port = sock.getsockname()
    return Ends(
        protocol=UDP,
        transport=20,
        source=socket.inet_aton(address),
        destination=socket.inet_aton(remote),
        source_port=port,
        destination_port=443,
    )


def test_after_the_end_nothing_is_noted_and_a_second_end_is_none() -> None:
    notes = CallNotes.open(cgroup2_root())
    calls = Map(os.dup(notes._calls.fd), records.COOKIE.size, records.ATTEMPT.size)
    with (
        contextlib.closing(calls),
        socket.socket(type=socket.SOCK_DGRAM) as before,
        socket.socket(type=socket.SOCK_DGRAM) as after,
    ):
        before.connect(("127.0.0.1", 443))
        notes.close()
        notes.close()
        after.connect(("127.0.0.1", 443))
        found = [calls.lookup(records.COOKIE.pack(cookie_of(one))) for one in (before, after)]
    assert [one is not None for one in found] == [True, False]


# --- and the diverter that reads it -----------------------------------------------------------------------------------
def asked_of(program: str, call_of: Callable[[int], Call | None] | None) -> tuple[str, Process]:
    """What is asked about who connects without waiting, if he is looked at when he runs `program`. And what he ran."""
    with link_to_an_origin(), contextlib.closing(Divert({})) as divert:
        backend = divert.open(calls=call_of)
        command = [sys.executable, "-I", "-S", "-c", CONNECTS_AND_EXECUTES, ORIGIN_V4, str(ORIGIN_PORT), program, "30"]
        with backend._lock:  # its threads wait for that
            running = subprocess.Popen(command)
            until(lambda: os.path.samefile(f"/proc/{running.pid}/exe", program))
        try:
            until(lambda: len(divert.asked) == 1)
        finally:
            running.kill()
            running.wait()
        ((process, _),) = divert.asked
        assert process.pid == running.pid
        return os.path.realpath(sys.executable), process


def test_who_has_executed_something_else_since_is_not_told_as_that(notes: CallNotes) -> None:
    _, process = asked_of(SLEEP, notes.call_of)
    assert (process.confidence, process.exe, process.sha256) == (Confidence.INFERRED, None, None)
    assert process.name == Path(sys.executable).name[:15]
    assert process.parent is not None
    assert process.parent.pid == os.getpid()


def test_who_still_runs_the_program_that_called_is_told_at_kernel(notes: CallNotes) -> None:
    executable, process = asked_of(os.path.realpath(sys.executable), notes.call_of)
    assert (process.confidence, process.exe) == (Confidence.KERNEL, executable)


def test_where_calls_are_noted_and_one_is_not_its_process_is_only_inferred() -> None:
    assert asked_of(SLEEP, lambda cookie: None)[1].confidence is Confidence.INFERRED
