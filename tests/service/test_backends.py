"""Which backend is taken where one of them does not work, and whose connections are that only it can find out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import structs
from msgspec.structs import replace

from mitmsec.core.messages import Whose
from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Quic, Transport
from mitmsec.service import backends
from mitmsec.service.backends import Terms, opened
from mitmsec.service.control import BackendChoice
from mitmsec.service.ground import listeners
from mitmsec_redirect import netns, nft
from mitmsec_redirect.backend import Backend, BackendKind, BackendUnavailable, SocketOwner
from mitmsec_redirect.bpf import EbpfUnavailable, ProgramRejected
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.monitor import Monitor
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed, Reason
from mitmsec_redirect.steps import Selection

needs_nft = pytest.mark.skipif(not any(Path(folder, "nft").exists() for folder in nft.FOLDERS.split(":")), reason="nft")
CLIENT, REMOTE = Endpoint(address="192.0.2.1", port=50000), Endpoint(address="203.0.113.10", port=443)
NO_BPF = EbpfUnavailable("bpf(2) is not permitted", "Run as root, with CAP_BPF.")


@pytest.fixture
def terms() -> Iterator[Terms]:
    """A cgroup and listeners in a network of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = f"mitmsec-backends-{os.getpid()}"
    cgroup = SessionCgroup.create("backends", f"{os.getpid()}")
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    network = os.open(f"/run/netns/{name}", os.O_RDONLY)
    found = netns.inside(network, listeners)
    try:
        yield Terms(
            cgroup=cgroup.path,
            ports=(found[0].getsockname()[1], found[-1].getsockname()[1]),
            namespace=lambda: netns.cookie_of(found[0]),
            netns_fd=network,
            on_failure=OnFailure.OPEN,
            quic=Quic.REFUSE,
            pins=lambda: None,
        )
    finally:
        for listener in found:
            listener.close()
        os.close(network)
        subprocess.run(["ip", "netns", "delete", name], check=True)
        cgroup.remove()


def taken(choice: BackendChoice, terms: Terms, say: Callable[[str], None]) -> Backend:
    return asyncio.run(opened(choice, terms, say))


def failing(monkeypatch: pytest.MonkeyPatch, backend: str, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(getattr(backends, backend), "open", refuse)


@pytest.mark.root
def test_where_ebpf_works_it_is_taken_and_nothing_said(terms: Terms) -> None:
    said: list[str] = []
    backend = taken(BackendChoice.AUTO, terms, said.append)
    assert (backend.kind, len(backend.ground.descriptors), said) == (BackendKind.CONNECT_HOOK, 2, [])
    assert (backend.owner(CLIENT, REMOTE), backend.troubles()) == (None, ())
    assert [one.fd for one in backend.watched] == [cast("Any", backend).routes_fd]
    assert backend.last_beat_ns > 0
    backend.close()


@needs_nft
@pytest.mark.root
@pytest.mark.parametrize("error", [NO_BPF, ProgramRejected("load: invalid argument")], ids=["forbidden", "rejected"])
def test_where_ebpf_does_not_work_rules_are_taken_and_it_is_said_why(
    terms: Terms, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, "ConnectHook", error)
    said: list[str] = []
    backend = taken(BackendChoice.AUTO, terms, said.append)
    try:
        assert (backend.kind, len(backend.ground.descriptors)) == (BackendKind.NFTABLES, 1)
        assert [table.name for table in nft.leftovers("mitmsec-backends", terms.netns_fd)] == [terms.cgroup.name]
    finally:
        backend.close()
    assert nft.leftovers("mitmsec-backends", terms.netns_fd) == []
    (line,) = said
    assert str(getattr(error, "reason", error)) in line


@needs_nft
@pytest.mark.root
def test_on_a_kernel_below_the_floor_the_hook_is_not_even_tried(terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "kernel_release", lambda: "5.18.0-1")
    said: list[str] = []
    with cast("Any", taken(BackendChoice.AUTO, terms, said.append)) as backend:
        assert backend.kind is BackendKind.NFTABLES
    assert "Linux 5.18.0-1 is older than 5.19" in said[0]


@pytest.mark.root
def test_where_neither_works_both_reasons_are_told(terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "ConnectHook", NO_BPF)
    failing(monkeypatch, "Nftables", BackendUnavailable("nft is not installed", "Install it."))
    with pytest.raises(BackendUnavailable) as raised:
        taken(BackendChoice.AUTO, terms, lambda _: None)
    assert raised.value.reason == "connect_hook: bpf(2) is not permitted; nftables: nft is not installed"
    assert raised.value.remedy == "Install it."


@pytest.mark.root
def test_a_backend_that_was_named_is_taken_or_nothing(terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "ConnectHook", NO_BPF)
    failing(monkeypatch, "Nftables", BackendUnavailable("nft is not installed", "Install it."))
    for choice, reason in ((BackendChoice.CONNECT_HOOK, NO_BPF.reason), (BackendChoice.NFTABLES, "nft is not")):
        with pytest.raises(BackendUnavailable) as raised:
            taken(choice, terms, lambda _: None)
        assert raised.value.reason.startswith(reason)


EVERYBODY = Selection(0, 0, everything=True)


def test_rules_cannot_serve_a_selection_of_single_programs() -> None:
    wide = Terms(Path("/"), (1, None), lambda: 0, 0, OnFailure.OPEN, Quic.REFUSE, lambda: None, selection=EVERYBODY)
    with pytest.raises(BackendUnavailable, match="single programs"):
        taken(BackendChoice.NFTABLES, wide, lambda _: None)


class Finding:
    """A backend that finds this process behind every connection."""

    def __init__(self, owner: SocketOwner | None) -> None:
        self._owner = owner

    def owner(self, client: Endpoint, origin: Endpoint) -> SocketOwner | None:
        assert (client, origin) == (CLIENT, REMOTE)
        return self._owner


OURSELVES = SocketOwner("sock_diag", Confidence.TABLE, pid=os.getpid(), uid=os.getuid(), comm="pytest")
ASKED = Whose(number=1, pid=0, uid=-1, comm="", client=CLIENT, remote=REMOTE)


def test_a_process_that_was_read_before_its_connection_began_is_told_as_it_was() -> None:
    process = Process(pid=7, exe="/usr/bin/curl", confidence=Confidence.KERNEL)
    asked = Whose(number=1, pid=7, uid=0, comm="curl", told=process)
    owner = backends.found(cast("Backend", Finding(OURSELVES)), asked, ProcessTable())
    assert owner is not None
    assert owner.process == process
    told = replace(missed(Confidence.KERNEL, 7, -1), process=process)
    owner = backends.found_missed(told, ProcessTable())
    assert owner is not None
    assert owner.process is process


class Remembering:
    """A table of processes that one connection's is known in, though it has ended."""

    def whose(self, pid: int, uid: int, comm: str, connected_ns: int | None = None) -> Owner:
        return Owner(Process(pid=pid, exe="/usr/bin/brief", confidence=Confidence.KERNEL))


@pytest.mark.parametrize(
    ("confidence", "connected_ns", "exe"),
    [
        (Confidence.INFERRED, 5, "/usr/bin/brief"),
        (Confidence.INFERRED, 0, None),  # a table named it, afterwards
        (Confidence.UNKNOWN, 5, None),
    ],
)
def test_a_process_that_had_ended_when_it_was_read_is_told_as_the_session_knew_it(
    confidence: Confidence, connected_ns: int, exe: str | None
) -> None:
    process = Process(pid=7, confidence=confidence)
    asked = Whose(number=1, pid=7, uid=0, comm="brief", told=process, connected_ns=connected_ns)
    owner = backends.found(cast("Backend", Finding(None)), asked, cast("ProcessTable", Remembering()))
    assert owner is not None
    assert owner.process.exe == exe


CONNECTS_AND_EXECUTES = """
import os, sys, time
print(time.monotonic_ns(), flush=True)
os.execv("/bin/sleep", ["sleep", "60"])
"""


@pytest.mark.root
def test_who_executes_something_else_right_after_connecting_is_not_told_as_that() -> None:
    """The diverter reads a process when it holds its SYN; the service's monitor has seen what it was at connect()."""
    with Monitor.open() as monitor, contextlib.closing(ProcessTable(monitor=monitor)) as watched:
        watched.refresh()
        command = [sys.executable, "-I", "-S", "-c", CONNECTS_AND_EXECUTES]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            try:
                assert program.stdout is not None
                connected_ns = int(program.stdout.readline())
                sleep = until_it_runs(program.pid, os.path.realpath("/bin/sleep"))
                exes = []
                for at_ns in (connected_ns, time.monotonic_ns(), 0):
                    asked = Whose(number=1, pid=program.pid, uid=0, comm="", told=sleep, connected_ns=at_ns)
                    owner = backends.found(cast("Backend", Finding(None)), asked, watched)
                    assert owner is not None
                    exes.append((owner.process.exe, owner.process.confidence))
            finally:
                program.kill()
    python = os.path.realpath(sys.executable)
    assert exes == [(exe, Confidence.KERNEL) for exe in (python, sleep.exe, sleep.exe)]


def until_it_runs(pid: int, exe: str) -> Process:
    """As a diverter reads it, with its hash."""
    deadline_s = time.monotonic() + 10
    with contextlib.closing(ProcessTable()) as table:
        while (owner := table.whose(pid, 0, "")).process.exe != exe or owner.process.sha256 is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    return owner.process


def test_a_hash_that_was_not_there_in_time_is_waited_for_if_it_is_still_that_process() -> None:
    table = ProcessTable()
    ours = table.whose(os.getpid(), os.getuid(), "").process
    early = structs.replace(ours, sha256=None)
    for process, comes in ((early, True), (structs.replace(early, started="1970-01-01T00:00:00.00Z"), False)):
        asked = Whose(number=1, pid=os.getpid(), uid=os.getuid(), comm="", told=process)
        owner = backends.found(cast("Backend", Finding(None)), asked, table)
        assert owner is not None
        assert (owner.sha256 is not None or owner.process.sha256 is not None) is comes
        assert (owner.process.started, owner.process.exe) == (process.started, process.exe)


def test_what_the_kernel_wrote_down_at_connect_is_not_looked_up() -> None:
    asked = Whose(number=1, pid=7, uid=0, comm="curl")
    assert backends.found(cast("Backend", Finding(OURSELVES)), asked, ProcessTable()) is None
    assert backends.found(cast("Backend", Finding(None)), ASKED, ProcessTable()) is None


def test_an_owner_that_was_looked_up_is_no_surer_than_that() -> None:
    owner = backends.found(cast("Backend", Finding(OURSELVES)), ASKED, ProcessTable())
    assert owner is not None
    process = owner.process
    assert (process.pid, process.exe) == (os.getpid(), os.path.realpath("/proc/self/exe"))
    assert (process.source, process.confidence) == ("sock_diag", Confidence.TABLE)


def missed(confidence: Confidence, pid: int, uid: int) -> Missed:
    return Missed(Reason.GATE_STALLED, Transport.TCP, REMOTE, pid, uid, "", 0, 0, denied=False, confidence=confidence)


@pytest.mark.parametrize(
    ("confidence", "pid", "uid", "told"),
    [
        (Confidence.UNKNOWN, 0, 0, (0, "root", Confidence.UNKNOWN)),
        (Confidence.UNKNOWN, 0, -1, (0, None, Confidence.UNKNOWN)),
        (Confidence.TABLE, os.getpid(), 0, (os.getpid(), "root", Confidence.TABLE)),
    ],
    ids=["nobody", "nobody's user", "us"],
)
def test_who_missed_is_told_as_far_as_it_is_known(
    confidence: Confidence, pid: int, uid: int, told: tuple[int, str | None, Confidence]
) -> None:
    owner = backends.found_missed(missed(confidence, pid, uid), ProcessTable())
    assert owner is not None
    assert (owner.process.pid, owner.process.user, owner.process.confidence) == told


def test_who_missed_by_the_kernels_word_is_not_looked_up() -> None:
    assert backends.found_missed(missed(Confidence.KERNEL, 7, 0), ProcessTable()) is None
