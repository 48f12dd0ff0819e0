"""Whose connections the backend diverts, on the real kernel; it is open all along, since to open it takes long."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
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
    GET,
    ORIGIN_PORT,
    ORIGIN_V4,
    ORIGIN_V6,
    UPSTREAM,
    Divert,
    at_rest,
    curl,
    fetched,
    forged_syn,
    from_port,
    link_to_an_origin,
    nothing_is_left,
    was_diverted,
)

from mitmsec.core.model import Confidence, Endpoint, OnFailure
from mitmsec_redirect.divert_signals import Choice
from mitmsec_redirect.sockdiag import CookieLookup, FoundSocket

pytestmark = pytest.mark.root

PYTHON = Path(sys.executable).resolve().name
ADDRESSES = pytest.mark.parametrize("host", [ORIGIN_V4, ORIGIN_V6], ids=["v4", "v6"])


EITHER_WAY = pytest.mark.parametrize("open_all_along", OnFailure, indirect=True)
CLOSED = pytest.mark.parametrize("open_all_along", [OnFailure.CLOSED], indirect=True)


@pytest.fixture(scope="module", params=[OnFailure.OPEN])
def open_all_along(request: pytest.FixtureRequest) -> Iterator[Divert]:
    with link_to_an_origin():
        with contextlib.closing(Divert({})) as made:
            made.open(request.param)
            yield made
        assert nothing_is_left()


@pytest.fixture
def divert(open_all_along: Divert) -> Divert:
    """Open, and without a flow. Diverts curl; everybody else is left alone."""
    until(lambda: open_all_along.at_work().statistics().live == 0)
    open_all_along.begin_anew({"curl": Choice.DIVERT})
    return open_all_along


# --- who is diverted --------------------------------------------------------------------------------------------------
@ADDRESSES
def test_a_selected_program_comes_to_the_gate_which_knows_whose_it_is_and_others_do_not(
    divert: Divert, host: str
) -> None:
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
    backend = divert.at_work()
    curl(host=host)
    before = at_rest(backend)
    assert len(fetched(host, 20_000_000)) > 20_000_000
    after = backend.statistics()
    assert after.syns.taken - before.syns.taken == 1
    assert after.data.taken == before.data.taken
    assert after.left == before.left + 1


def test_both_ways_arrive_whole_through_segments_of_any_length(divert: Divert, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(os.urandom(30_000_000))
    sent = curl("-T", str(tmp_path / "up"))
    assert (was_diverted(sent.stdout), sent.stdout.split()[2]) == (True, "30000000")
    got = curl(path="30000000")
    assert len(got.stdout) == 30_000_000 + got.stdout.index("\n") + 1


def test_a_v4_mapped_connection_is_one_to_the_ipv4_address(divert: Divert) -> None:
    divert.choices = {PYTHON: Choice.DIVERT}
    with socket.socket(socket.AF_INET6) as sock:
        sock.connect((f"::ffff:{ORIGIN_V4}", ORIGIN_PORT))
        sock.sendall(GET % 0)
        assert from_port(sock.recv(999).partition(b"\r\n\r\n")[2]) in UPSTREAM
    assert divert.expected[0].origin.remote == Endpoint.of(ORIGIN_V4, ORIGIN_PORT)


def test_a_denied_program_is_refused_at_once(divert: Divert) -> None:
    divert.choices = {"curl": Choice.DENY}
    refused = divert.at_work().statistics().refused
    begun_s = time.monotonic()
    for host in (ORIGIN_V4, ORIGIN_V6):
        assert curl(host=host).returncode == 7  # could not connect
    assert time.monotonic() - begun_s < 5
    assert divert.at_work().statistics().refused == refused + 2


def test_the_same_addresses_again_are_another_connection(divert: Divert) -> None:
    divert.choices = {PYTHON: Choice.DIVERT}
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
    backend = divert.at_work()
    before = backend.statistics().diverted
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
    assert backend.statistics().diverted == before + 120


def test_many_programs_at_once_are_never_taken_for_one_another(divert: Divert) -> None:
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


# --- flows
def test_the_filter_grows_under_load_and_nothing_is_lost(divert: Divert) -> None:
    """Downloads go on while connections to ever more places exchange the data handle."""
    backend = divert.at_work()
    unsent = backend.statistics().unsent
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
    assert backend.statistics().unsent == unsent
    assert divert.faults == []


def test_flows_that_are_over_are_forgotten(divert: Divert) -> None:
    backend = divert.at_work()
    curl()
    assert backend.statistics().live == 1
    until(lambda: backend.statistics().live == 0)
    assert len(backend._table) == 0


def test_addresses_that_a_diverted_flow_had_are_free_for_who_is_not_to_be_diverted(divert: Divert) -> None:
    backend = divert.at_work()
    divert.choices = {PYTHON: Choice.DIVERT}
    with socket.create_connection((ORIGIN_V4, ORIGIN_PORT), timeout=20, source_address=("", 45000)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    divert.concerns = lambda told: False
    assert backend.statistics().live == 1, "its end is only seen by the next look"
    assert from_port(fetched(source=("", 45000))) == 45000
    assert backend.statistics().live == 0


# --- when something fails --------------------------------------------------------------------------------------------
@EITHER_WAY
def test_a_syn_of_nobody_follows_on_failure(divert: Divert) -> None:
    backend = divert.at_work()
    before = backend.statistics()
    forged_syn(33333)
    forged_syn(33333)  # sent again while the first is held: one answer is enough
    until(lambda: bool(divert.faults))
    (fault,) = divert.faults
    assert (fault.what, fault.failed) == ("owner_unknown", divert.on_failure)
    assert fault.detail == f"10.78.0.1:33333 to {ORIGIN_V4}:{ORIGIN_PORT}"
    counted = backend.statistics()
    assert (counted.left - before.left, counted.refused - before.refused) == (
        (1, 0) if divert.on_failure is OnFailure.OPEN else (0, 1)
    )


@EITHER_WAY
@pytest.mark.parametrize("what", ["gate_unreachable", "not_decided"])
def test_when_the_gate_or_the_policy_cannot_be_asked_on_failure_decides(
    divert: Divert, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Choice:
        raise RuntimeError("nobody there")

    if what == "gate_unreachable":
        divert.tells = fails
    else:
        monkeypatch.setattr(divert, "decide", fails)
    answer = curl()
    if divert.on_failure is OnFailure.OPEN:
        assert not was_diverted(answer.stdout)
    else:
        assert answer.returncode == 7
    assert {(fault.what, fault.failed) for fault in divert.faults} == {(what, divert.on_failure)}
    assert "nobody there" in divert.faults[0].detail


@EITHER_WAY
def test_a_first_packet_whose_socket_cannot_be_asked_for_goes_as_failures_go_and_the_next_is_asked_for(
    divert: Divert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed, its program sends it again, a second later; nobody who is not concerned is refused."""
    refused = divert.at_work().statistics().refused
    find, failing = CookieLookup.find_packed, [OSError(errno.ENOBUFS, "no room for the answer")]

    def found(*question: Any) -> FoundSocket | None:
        if failing:
            raise failing.pop()
        return find(*question)

    monkeypatch.setattr(CookieLookup, "find_packed", found)
    assert was_diverted(curl().stdout) is (divert.on_failure is OnFailure.CLOSED)
    assert was_diverted(curl().stdout)
    (fault,) = divert.faults
    assert (fault.what, fault.failed) == ("socket_not_found", divert.on_failure)
    assert fault.detail.endswith(f" to {ORIGIN_V4}:{ORIGIN_PORT}: [Errno 105] no room for the answer")
    counted = divert.at_work().statistics()
    assert (counted.refused, counted.held) == (refused, 0)


@CLOSED
def test_a_flow_that_the_gate_could_not_tell_from_another_is_not_diverted(divert: Divert) -> None:
    """The gate's own port as the origin's, for one."""
    divert.choices = {PYTHON: Choice.DIVERT}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ORIGIN_V4, GATE_PORT), timeout=5)
    assert divert.faults[0].detail.endswith("nat_taken")
