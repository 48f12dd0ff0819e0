"""The backend on the real kernel: programs in one network namespace, an origin in another, a relay for the gate."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from divert_packets import until
from divert_sandbox import (
    GET,
    ORIGIN_PORT,
    ORIGIN_V4,
    ORIGIN_V6,
    UPSTREAM,
    Divert,
    curl,
    fetched,
    forged_syn,
    from_port,
    link_to_an_origin,
    nothing_is_left,
    was_diverted,
)

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import divert_engine, windivert
from mitmsec_redirect.divert_signals import Choice, Overflowed, Which

pytestmark = pytest.mark.root

PYTHON = Path(sys.executable).resolve().name
ADDRESSES = pytest.mark.parametrize("host", [ORIGIN_V4, ORIGIN_V6], ids=["v4", "v6"])


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    """A link to an origin; the namespace that all this is not in."""
    with link_to_an_origin() as before:
        yield before


@pytest.fixture
def divert(outside: int) -> Iterator[Divert]:
    """Diverts curl; everybody else is left alone."""
    with contextlib.closing(Divert({"curl": Choice.DIVERT})) as made:
        yield made
    assert nothing_is_left()


# --- a SYN that no socket has sent ------------------------------------------------------------------------------------
# --- when something fails ---------------------------------------------------------------------------------------------
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
