"""The backend on the real kernel: programs in one network namespace, an origin in another, a relay for the gate."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from divert_packets import until
from divert_sandbox import (
    GATE_PORT,
    ORIGIN_PORT,
    ORIGIN_V4,
    ORIGIN_V6,
    UPSTREAM,
    Divert,
    at_rest,
    curl,
    link_to_an_origin,
    seen_port,
    was_diverted,
)

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Quic
from mitmsec_redirect import clsact, divert_engine, windivert
from mitmsec_redirect.divert_signals import Choice, Overflowed, Which
from mitmsec_redirect.sockdiag import CookieLookup, FoundSocket

pytestmark = pytest.mark.root

PYTHON = Path(sys.executable).resolve().name
ADDRESSES = pytest.mark.parametrize("host", [ORIGIN_V4, ORIGIN_V6], ids=["v4", "v6"])
GET = b"GET /%d HTTP/1.0\r\n\r\n"


@pytest.fixture
def outside() -> Iterator[int]:
    """A link to an origin; the namespace that all this is not in."""
    with link_to_an_origin() as before:
        yield before


@pytest.fixture
def divert(outside: int) -> Iterator[Divert]:
    """Diverts curl; everybody else is left alone."""
    with contextlib.closing(Divert({"curl": Choice.DIVERT})) as made:
        yield made
    with contextlib.closing(clsact.TrafficControl()) as control:
        assert control.clsact() == frozenset()


def fetched(host: str = ORIGIN_V4, size: int = 0, source: tuple[str, int] | None = None) -> bytes:
    """What the origin says to this process, which nobody diverts unless a test says so."""
    with socket.create_connection((host, ORIGIN_PORT), timeout=20, source_address=source) as sock:
        sock.sendall(GET % size)
        data = b""
        while more := sock.recv(1 << 20):
            data += more
    return data.partition(b"\r\n\r\n")[2]


def from_port(answer: bytes) -> int:
    return seen_port(answer.decode("latin-1"))


# --- who is diverted --------------------------------------------------------------------------------------------------
@ADDRESSES
def test_a_selected_program_comes_to_the_gate_which_knows_whose_it_is_and_others_do_not(
    divert: Divert, host: str
) -> None:
    divert.open()
    answer = curl(host=host)
    assert was_diverted(answer.stdout)
    (flow,) = divert.expected
    assert flow.origin.remote == Endpoint.of(host, ORIGIN_PORT)
    assert flow.client.address == host
    assert flow.gate == Endpoint.of(host.replace("2", "1") if "." in host else "fd78::1", GATE_PORT)
    assert (flow.process.name, flow.process.confidence, flow.process.source) == ("curl", Confidence.KERNEL, "windivert")
    assert flow.process.exe == os.path.realpath("/usr/bin/curl")
    assert flow.process.parent is not None
    assert flow.process.parent.pid == os.getpid()
    assert from_port(fetched(host)) not in UPSTREAM
    assert divert.faults == []


@ADDRESSES
def test_an_unselected_programs_packets_never_come_to_user_space(divert: Divert, host: str) -> None:
    backend = divert.open()
    curl(host=host)
    before = at_rest(backend)
    assert len(fetched(host, 20_000_000)) > 20_000_000
    after = backend.statistics()
    assert after.syns.taken - before.syns.taken == 1
    assert after.data.taken == before.data.taken
    assert after.left == before.left + 1


def test_both_ways_arrive_whole_through_segments_of_any_length(divert: Divert, tmp_path: Path) -> None:
    divert.open()
    (tmp_path / "up").write_bytes(os.urandom(30_000_000))
    sent = curl("-T", str(tmp_path / "up"))
    assert (was_diverted(sent.stdout), sent.stdout.split()[2]) == (True, "30000000")
    got = curl(path="30000000")
    assert len(got.stdout) == 30_000_000 + got.stdout.index("\n") + 1


def test_a_v4_mapped_connection_is_one_to_the_ipv4_address(divert: Divert) -> None:
    divert.choices = {PYTHON: Choice.DIVERT}
    divert.open()
    with socket.socket(socket.AF_INET6) as sock:
        sock.connect((f"::ffff:{ORIGIN_V4}", ORIGIN_PORT))
        sock.sendall(GET % 0)
        assert from_port(sock.recv(999).partition(b"\r\n\r\n")[2]) in UPSTREAM
    assert divert.expected[0].origin.remote == Endpoint.of(ORIGIN_V4, ORIGIN_PORT)


def test_a_denied_program_is_refused_at_once(divert: Divert) -> None:
    divert.choices = {"curl": Choice.DENY}
    backend = divert.open()
    begun_s = time.monotonic()
    for host in (ORIGIN_V4, ORIGIN_V6):
        assert curl(host=host).returncode == 7  # could not connect
    assert time.monotonic() - begun_s < 5
    assert backend.statistics().refused == 2


def test_the_same_addresses_again_are_another_connection(divert: Divert) -> None:
    divert.choices = {PYTHON: Choice.DIVERT}
    divert.open()
    for choice in (Choice.DIVERT, Choice.DIVERT, Choice.LEAVE, Choice.DIVERT):
        divert.choices = {PYTHON: choice}
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
            sock.bind(("10.78.0.1", 45678))
            sock.connect((ORIGIN_V4, ORIGIN_PORT))
            sock.sendall(GET % 0)
            port = from_port(sock.recv(999).partition(b"\r\n\r\n")[2])
            assert (port in UPSTREAM) is (choice is Choice.DIVERT)
        time.sleep(0.05)  # the relay's side is reset too, before its port is used anew


# --- whose ------------------------------------------------------------------------------------------------------------
def test_programs_that_end_at_once_are_known_all_the_same(divert: Divert, tmp_path: Path) -> None:
    """Each connection by a process of its own, which does nothing else."""
    divert.choices = {"bash": Choice.DIVERT, "curl": Choice.DIVERT}
    backend = divert.open()
    code = f"""
    for host in {ORIGIN_V4} {ORIGIN_V6}; do for i in $(seq 60); do
      (echo $BASHPID >>{tmp_path}/$host; exec 3<>/dev/tcp/$host/{ORIGIN_PORT}) || echo failed
    done; done
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    pids = [int(pid) for host in (ORIGIN_V4, ORIGIN_V6) for pid in (tmp_path / host).read_text().split()]
    assert [flow.process.pid for flow in divert.expected] == pids
    assert {(flow.process.name, flow.process.confidence) for flow in divert.expected} == {("bash", Confidence.KERNEL)}
    assert divert.faults == []
    assert backend.statistics().diverted == 120


def test_many_programs_at_once_are_never_taken_for_one_another(divert: Divert) -> None:
    divert.open()
    code = f"""
import socket, sys
for _ in range(100):
    with socket.create_connection(("{ORIGIN_V4}", {ORIGIN_PORT})) as s: print(s.getsockname()[1])
"""
    divert.choices = {PYTHON: Choice.DIVERT}
    with contextlib.ExitStack() as held:
        programs = [
            held.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        truth = {(program.pid, int(port)) for program in programs for port in program.communicate()[0].split()}
    assert len(truth) == 300
    assert {(flow.process.pid, flow.client.port) for flow in divert.expected} == truth
    assert divert.faults == []


def forged_syn(port: int) -> None:
    """A SYN that no socket has sent."""
    header = struct.pack("!HHIIBBHHH", port, ORIGIN_PORT, 1, 0, 5 << 4, 2, 8192, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(header, (ORIGIN_V4, 0))


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_syn_of_nobody_follows_on_failure(divert: Divert, on_failure: OnFailure) -> None:
    backend = divert.open(on_failure)
    forged_syn(33333)
    forged_syn(33333)  # sent again while the first is held: one answer is enough
    until(lambda: bool(divert.faults))
    (fault,) = divert.faults
    assert (fault.what, fault.failed) == ("owner_unknown", on_failure)
    assert fault.detail == f"10.78.0.1:33333 to {ORIGIN_V4}:{ORIGIN_PORT}"
    counted = backend.statistics()
    assert (counted.left, counted.refused) == ((1, 0) if on_failure is OnFailure.OPEN else (0, 1))


# --- when something fails ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("what", ["gate_unreachable", "not_decided"])
def test_when_the_gate_or_the_policy_cannot_be_asked_on_failure_decides(
    divert: Divert, on_failure: OnFailure, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Choice:
        raise RuntimeError("nobody there")

    if what == "gate_unreachable":
        divert.tells = fails
    else:
        monkeypatch.setattr(divert, "decide", fails)
    divert.open(on_failure)
    answer = curl()
    if on_failure is OnFailure.OPEN:
        assert not was_diverted(answer.stdout)
    else:
        assert answer.returncode == 7
    assert {(fault.what, fault.failed) for fault in divert.faults} == {(what, on_failure)}
    assert "nobody there" in divert.faults[0].detail


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_first_packet_whose_socket_cannot_be_asked_for_goes_as_failures_go_and_the_next_is_asked_for(
    divert: Divert, on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed, its program sends it again, a second later; nobody who is not concerned is refused."""
    backend = divert.open(on_failure)
    find, failing = CookieLookup.find_packed, [OSError(errno.ENOBUFS, "no room for the answer")]

    def found(*question: Any) -> FoundSocket | None:
        if failing:
            raise failing.pop()
        return find(*question)

    monkeypatch.setattr(CookieLookup, "find_packed", found)
    assert was_diverted(curl().stdout) is (on_failure is OnFailure.CLOSED)
    assert was_diverted(curl().stdout)
    (fault,) = divert.faults
    assert (fault.what, fault.failed) == ("socket_not_found", on_failure)
    assert fault.detail.endswith(f" to {ORIGIN_V4}:{ORIGIN_PORT}: [Errno 105] no room for the answer")
    assert (backend.statistics().refused, backend.statistics().held) == (0, 0)


def test_a_flow_that_the_gate_could_not_tell_from_another_is_not_diverted(divert: Divert) -> None:
    """The gate's own port as the origin's, for one."""
    divert.choices = {PYTHON: Choice.DIVERT}
    divert.open(OnFailure.CLOSED)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ORIGIN_V4, GATE_PORT), timeout=5)
    assert divert.faults[0].detail.endswith("nat_taken")


@pytest.mark.parametrize("on_failure", OnFailure)
def test_when_our_own_code_fails_the_network_falls_the_way_it_should(
    divert: Divert, on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = divert.open(on_failure)
    monkeypatch.setattr(backend._engine, "told", lambda *_: 1 / 0)
    curl("--max-time", "0.1")
    until(lambda: any(fault.what == "backend_failed" for fault in divert.faults))
    assert curl("--max-time", "3").returncode == (0 if on_failure is OnFailure.OPEN else 28)


def test_a_filter_that_cannot_be_had_is_a_failure_of_the_new_flows_only(
    divert: Divert, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError("no memory")

    divert.open()
    assert was_diverted(curl().stdout)
    with monkeypatch.context() as patch:
        patch.setattr(windivert, "open_handle", refuses)
        assert not was_diverted(curl(host=ORIGIN_V6).stdout)
    assert [(fault.what, fault.failed) for fault in divert.faults] == [("filter_refused", OnFailure.OPEN)]
    assert was_diverted(curl(host=ORIGIN_V6).stdout)


@pytest.mark.parametrize("on_failure", OnFailure)
def test_connections_that_slipped_by_live_on_or_are_ended_as_on_failure_says(
    divert: Divert, on_failure: OnFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a memory of its answer the engine believes that the connection's SYN went by unseen."""
    monkeypatch.setattr(divert_engine, "ANSWERS_LIMIT", 0)
    backend = divert.open(on_failure)
    with socket.create_connection((ORIGIN_V4, ORIGIN_PORT), timeout=10) as slipped:
        divert.choices = {PYTHON: Choice.DIVERT}
        backend._tell_locked([Overflowed(which=Which.SYNS, count=1, passed=True)])
        if on_failure is OnFailure.CLOSED:
            until(lambda: len(divert.faults) == 2)
            with pytest.raises(ConnectionError):
                slipped.sendall(GET % 0)
        else:
            slipped.sendall(GET % 0)
            assert slipped.recv(999)
    what = ["queue_overflow", "cut_unseen"] if on_failure is OnFailure.CLOSED else ["queue_overflow"]
    assert [fault.what for fault in divert.faults] == what


def test_a_flood_of_syns_that_finds_no_room_is_told_of(divert: Divert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windivert, "RING_BYTES", 4096)
    backend = divert.open()
    with backend._lock:  # the backend is slow to come
        for port in range(10_000, 10_200):
            forged_syn(port)
    until(lambda: any(fault.what == "queue_overflow" for fault in divert.faults))
    (fault,) = (fault for fault in divert.faults if fault.what == "queue_overflow")
    assert fault.failed is OnFailure.OPEN
    assert fault.detail.startswith("syns: ")
    assert fault.detail.endswith("passed by")


# --- QUIC -------------------------------------------------------------------------------------------------------------
DATAGRAM = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((sys.argv[1], 443))
try:
    s.send(bytes([int(sys.argv[2])]) * 1200)
    print(len(s.recv(9999)))
except OSError as error:
    print(type(error).__name__)
"""


@ADDRESSES
def test_a_selected_programs_quic_is_refused_at_once_and_others_is_not(divert: Divert, host: str) -> None:
    def told(first_byte: int) -> str:
        command = [sys.executable, "-c", DATAGRAM, host, str(first_byte)]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    divert.open(quic=Quic.REFUSE)
    assert told(0xC3) == "1200"
    divert.choices = {PYTHON: Choice.DIVERT}
    assert told(0xC3) == "ConnectionRefusedError"
    assert told(0x43) == "1200"  # no handshake: nobody's business
    assert divert.faults == []


# --- the filter grows, handles come and go ----------------------------------------------------------------------------
def test_the_filter_grows_under_load_and_nothing_is_lost(divert: Divert) -> None:
    """Downloads go on while connections to ever more places exchange the data handle."""
    backend = divert.open()
    size = 150_000_000
    wanted = hashlib.sha256(bytes(size)).hexdigest()
    command = ["curl", "-sS", "--noproxy", "*", f"http://{ORIGIN_V4}:{ORIGIN_PORT}/{size}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as download:
        assert download.stdout is not None
        line = download.stdout.readline()
        got, counted = hashlib.sha256(), threading.Event()

        def drain() -> None:
            assert download.stdout is not None
            while data := download.stdout.read(1 << 20):
                got.update(data)
            counted.set()

        threading.Thread(target=drain).start()
        grown = 0
        while not counted.is_set() or grown < 3:
            host = (ORIGIN_V4, ORIGIN_V6)[grown % 2]
            assert was_diverted(curl(host=host).stdout)
            grown += 1
        assert got.hexdigest() == wanted
    assert was_diverted(line.decode())
    assert backend.statistics().unsent == 0
    assert divert.faults == []


def test_opening_and_closing_under_load_loses_no_connection_of_others(divert: Divert) -> None:
    stop = threading.Event()
    done: list[int] = []

    def load() -> None:
        while not stop.is_set():
            done.append(from_port(fetched()))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            divert.open().close()
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert len(done) > 20
    assert not any(port in UPSTREAM for port in done)
    assert divert.faults == []


def test_detached_a_diverted_flow_lives_on_and_no_new_one_begins(divert: Divert) -> None:
    divert.choices = {PYTHON: Choice.DIVERT}
    backend = divert.open()
    with socket.create_connection((ORIGIN_V4, ORIGIN_PORT), timeout=10) as sock:
        sock.sendall(b"GET / HT")
        backend.detach()
        backend.detach()
        assert from_port(fetched()) not in UPSTREAM
        sock.sendall(b"TP/1.0\r\n\r\n")
        assert from_port(sock.recv(999).partition(b"\r\n\r\n")[2]) in UPSTREAM


def test_what_is_held_when_the_backend_goes_is_answered_first(divert: Divert) -> None:
    backend = divert.open()
    forged_syn(33333)
    until(lambda: backend.statistics().held == 1)
    backend.detach()
    assert [fault.what for fault in divert.faults] == ["owner_unknown"]
    assert backend.statistics().held == 0


def test_flows_that_are_over_are_forgotten(divert: Divert) -> None:
    backend = divert.open()
    curl()
    assert backend.statistics().live == 1
    until(lambda: backend.statistics().live == 0)
    assert len(backend._table) == 0


def test_addresses_that_a_diverted_flow_had_are_free_for_who_is_not_to_be_diverted(divert: Divert) -> None:
    backend = divert.open()
    divert.choices = {PYTHON: Choice.DIVERT}
    with socket.create_connection((ORIGIN_V4, ORIGIN_PORT), timeout=20, source_address=("", 45000)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    divert.concerns = lambda told: False
    assert backend.statistics().live == 1, "its end is only seen by the next look"
    assert from_port(fetched(source=("", 45000))) == 45000
    assert backend.statistics().live == 0


def test_what_cannot_be_opened_leaves_nothing_behind(divert: Divert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windivert, "QUIC_FILTER", "no filter")
    with pytest.raises(ValueError, match="the filter is none"):
        divert.open(quic=Quic.REFUSE)
    assert not any(thread.name.startswith("divert-") for thread in threading.enumerate())
    assert not was_diverted(curl().stdout)


def test_another_namespaces_connections_are_taken_from_outside_it(divert: Divert, outside: int) -> None:
    """The supervisor stays where it is."""
    inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        os.setns(outside, os.CLONE_NEWNET)
        divert.open(netns_fd=inside)
        os.setns(inside, os.CLONE_NEWNET)
        assert was_diverted(curl().stdout)
        os.setns(outside, os.CLONE_NEWNET)
        divert.close()
    finally:
        os.setns(inside, os.CLONE_NEWNET)
        os.close(inside)


KILLED = """
import sys, time
sys.path[:0] = eval(sys.argv[1])
from divert_sandbox import OWN
from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect.divert_seams import Callbacks
from mitmsec_redirect.divert_signals import Choice, Overflowed, Which
from mitmsec_redirect.windivert import Windivert
callbacks = Callbacks(decide=lambda *_: Choice.LEAVE, expect=print, report=print)
Windivert.open(OWN, callbacks, on_failure=OnFailure.OPEN, quic=Quic.BYPASS)
print("open", flush=True)
time.sleep(60)
"""


def test_what_a_killed_backend_has_left_is_reaped(outside: int) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, repr(sys.path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"open\n"
        killed.send_signal(signal.SIGKILL)
    assert windivert.reap() > 0
    assert windivert.reap() == 0
    before = retransmitted()
    assert not was_diverted(curl().stdout)
    assert retransmitted() == before, "no SYN falls into a hole"


def retransmitted() -> int:
    """How many segments TCP has sent again in this network namespace."""
    names, values = (
        line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    )
    return int(values[names.index("RetransSegs")])
