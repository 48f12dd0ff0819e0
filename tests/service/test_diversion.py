"""What a diverter takes: the run's own connections, as long as the gate lives; and what it tells of the others."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Quic, Transport
from mitmsec.service import diversion as module
from mitmsec.service.diversion import Diversion, Reports, Standing
from mitmsec.service.divert_messages import DiverterFault, DiverterSettings, NotDiverted
from mitmsec_redirect import expected_flows
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.divert_seams import SocketTold
from mitmsec_redirect.divert_signals import Choice, Report
from mitmsec_redirect.expected_flows import ExpectedFlow, ExpectedFlows
from mitmsec_redirect.records import Origin
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.verdicts import Verdict, entry

CURL = Process(pid=7, exe="/usr/bin/curl", confidence=Confidence.KERNEL)
REMOTE, CLIENT = Endpoint(address="203.0.113.10", port=443), Endpoint(address="203.0.113.10", port=40001)
GATE = Endpoint(address="192.0.2.1", port=8085)
ORIGIN = Origin(
    remote=REMOTE, pid=7, uid=0, comm="curl", connected_ns=1, bound=None, source=None, selected=True
)  # as the backend has it
TOLD = SocketTold(Transport.TCP)


class Stage:
    def __init__(self, on_failure: OnFailure, cgroup: str = "/sys/fs/cgroup") -> None:
        settings = DiverterSettings(
            cgroup=cgroup, gate_port=8085, local_ports=(61000, 62999), on_failure=on_failure, quic=Quic.REFUSE
        )
        self.reports = Reports()
        self.teller, told = expected_flows.channel()
        self.gate = ExpectedFlows(told)
        self.diversion = Diversion(settings, self.teller, self.reports)

    def tries(self, transport: Transport = Transport.TCP, cookie: int | None = None) -> Choice:
        return self.diversion.decide(CURL, REMOTE, SocketTold(transport, cookie))

    def concerns(self, cgroup: int, transport: Transport = Transport.TCP, cookie: int | None = None) -> bool:
        return self.diversion.concerns(SocketTold(transport, cookie, cgroup=cgroup))

    def missed(self) -> list[tuple[str, bool]]:
        return [(one.reason, one.denied) for one in self.reports.take() if isinstance(one, NotDiverted)]


def not_diverted(number: int) -> NotDiverted:
    remote = Endpoint(address="203.0.113.10", port=number)
    return NotDiverted(
        reason="gate_stalled", transport=Transport.TCP, remote=remote, process=CURL, at_ns=0, denied=False
    )


def test_a_living_gate_gets_the_connection_and_has_been_told_of_it() -> None:
    stage = Stage(OnFailure.CLOSED)
    assert stage.tries() is Choice.DIVERT
    flow = ExpectedFlow(client=CLIENT, gate=GATE, origin=ORIGIN, process=CURL)
    stage.diversion.expect(flow, TOLD)
    assert stage.gate.find(CLIENT, GATE, 0.0) == flow
    assert stage.missed() == []


@pytest.mark.parametrize(
    ("on_failure", "choice"), [(OnFailure.OPEN, Choice.LEAVE), (OnFailure.CLOSED, Choice.DENY)], ids=["open", "closed"]
)
def test_a_gate_without_a_heartbeat_gets_nothing_and_it_is_told_which_way_that_went(
    on_failure: OnFailure, choice: Choice
) -> None:
    stage = Stage(on_failure)
    stage.diversion.beat_ns = time.monotonic_ns() - 1_100_000_000
    assert stage.tries() is choice
    assert stage.missed() == [("gate_stalled", choice is Choice.DENY)]
    stage.diversion.beat_ns = time.monotonic_ns()
    assert stage.tries() is Choice.DIVERT


def test_quic_is_refused_whoever_beats() -> None:
    stage = Stage(OnFailure.OPEN)
    assert stage.tries(Transport.UDP) is Choice.DENY
    assert stage.missed() == [("quic_refused", True)]


def test_what_is_told_is_bounded_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_LIMIT", 3)
    reports = Reports()
    for number in range(5):
        reports.missed(not_diverted(number))
    assert [one.remote.port for one in reports.take() if isinstance(one, NotDiverted)] == [0, 1, 2]
    assert reports.untold() == {"gate_stalled": 2}
    assert reports.take() == []


def test_faults_of_a_kind_are_added_up_and_their_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULTS_LIMIT", 2)
    reports = Reports()
    for what, detail in (("queue_overflow", "first"), ("queue_overflow", "second"), ("held_full", ""), ("more", "")):
        reports.fault(Report(what=what, failed=OnFailure.OPEN, detail=detail))
    assert reports.take() == [
        DiverterFault(what="queue_overflow", failed=OnFailure.OPEN, detail="first", count=2),
        DiverterFault(what="held_full", failed=OnFailure.OPEN),
    ]


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("diversion", f"{os.getpid()}")
    (made.path / "below").mkdir()
    yield made
    assert made.remove()


@pytest.mark.root
def test_sockets_of_the_run_and_of_what_it_puts_below_are_its_own(cgroup: SessionCgroup) -> None:
    concerns = Stage(OnFailure.OPEN, str(cgroup.path)).concerns
    assert concerns(cgroup.path.stat().st_ino)
    assert concerns((cgroup.path / "below").stat().st_ino)
    assert not concerns(cgroup.path.parent.stat().st_ino)
    assert concerns(0), "who cannot be told is asked about"
    assert not concerns(1 << 60), "one that has gone was none of a run that lives"


@pytest.mark.root
def test_a_cgroup_whose_name_only_begins_alike_is_anothers(cgroup: SessionCgroup) -> None:
    longer = cgroup.path.with_name(cgroup.path.name + "0")
    longer.mkdir()
    try:
        assert not Stage(OnFailure.OPEN, str(cgroup.path)).concerns(longer.stat().st_ino)
    finally:
        longer.rmdir()


def test_a_gate_that_does_not_hear_is_an_error_for_whoever_tells() -> None:
    stage = Stage(OnFailure.OPEN)
    stage.gate.close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        stage.diversion.expect(ExpectedFlow(client=CLIENT, gate=GATE, origin=ORIGIN, process=CURL), TOLD)


class Kept:
    """The maps of a standing selection, as supervisor and monitor keep them."""

    def __init__(self) -> None:
        self.verdicts = Map.create(MapKind.HASH, 4, 8, 16, "ms_selected")
        self.runs = RunCgroups()
        self.notes: dict[int, Verdict] = {}

    def judge(self, pid: int, verdict: Verdict) -> None:
        self.verdicts.update(struct.pack("=I", pid), struct.pack("=Q", entry(5 << 12, verdict)))

    def stage(
        self, on_failure: OnFailure = OnFailure.CLOSED, quic: Quic = Quic.REFUSE, *, everything: bool = False
    ) -> Stage:
        stage = Stage(on_failure)
        settings = replace(stage.diversion.settings, quic=quic, is_standing=True, everything=everything)
        stage.diversion = Diversion(settings, stage.teller, stage.reports, self.standing())
        return stage

    def standing(self) -> Standing:
        return Standing(self.verdicts.fd, self.runs.fd, self.notes.get)


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.verdicts.close()
    made.runs.close()


@pytest.mark.root
@pytest.mark.parametrize(
    ("verdict", "selected", "among_all"),
    [
        (None, False, True),
        (Verdict.SELECTED, True, True),
        (Verdict.UNDECIDED, True, True),
        (Verdict.SELECTED | Verdict.OWN_TRAFFIC, False, False),
        (Verdict.INHERITS, False, True),
    ],
)
def test_a_standing_selection_is_what_the_kernel_says_of_the_process(
    kept: Kept, verdict: Verdict | None, selected: bool, among_all: bool
) -> None:
    if verdict is not None:
        kept.judge(7, verdict)
    assert kept.stage().diversion.selects(7, TOLD) is selected
    assert kept.stage(everything=True).diversion.selects(7, TOLD) is among_all


@pytest.mark.root
def test_what_fails_does_not_fall_on_whom_nobody_has_judged(kept: Kept) -> None:
    stage = kept.stage(OnFailure.CLOSED)
    stage.diversion.beat_ns = 0
    kept.judge(7, Verdict.UNDECIDED)
    assert stage.tries() is Choice.LEAVE
    assert stage.missed() == []
    kept.judge(7, Verdict.SELECTED)
    assert stage.tries() is Choice.DENY
    assert stage.missed() == [("gate_stalled", True)]


@pytest.mark.root
def test_what_a_run_diverts_a_service_does_not(kept: Kept, cgroup: SessionCgroup) -> None:
    concerns = kept.stage().concerns
    number = cgroup.path.stat().st_ino
    assert concerns(number)
    kept.runs.are([cgroup.path])
    assert not concerns(number)
    assert not concerns((cgroup.path / "below").stat().st_ino)
    assert concerns(cgroup.path.parent.stat().st_ino)
    assert concerns(0)


@pytest.mark.root
def test_a_service_may_let_quic_pass(kept: Kept) -> None:
    """Then nobody's is held up until it is known whose it is."""
    for quic, concerns, choice in (
        (Quic.BYPASS, False, Choice.LEAVE),
        (Quic.REFUSE, True, Choice.DENY),
        (Quic.DECRYPT, True, Choice.DENY),  # for it is not led to the gate
    ):
        stage = kept.stage(quic=quic)
        assert stage.concerns(0, Transport.UDP, cookie=1) is concerns
        assert stage.tries(Transport.UDP) is choice


@pytest.mark.root
def test_what_was_noted_in_connect_counts_whatever_has_become_of_the_process(kept: Kept) -> None:
    """Process 7 has ended: nothing is known of it any more."""
    kept.notes = {1: Verdict.SELECTED, 2: Verdict.UNDECIDED}
    stage = kept.stage(OnFailure.CLOSED)
    assert [stage.concerns(0, cookie=cookie) for cookie in (1, 2, 3)] == [True, True, False]
    selects = stage.diversion.selects
    assert [selects(7, SocketTold(Transport.TCP, cookie)) for cookie in (1, 2, 3)] == [True, True, False]
    stage.diversion.beat_ns = 0
    assert [stage.tries(cookie=cookie) for cookie in (1, 2)] == [Choice.DENY, Choice.LEAVE]
    for cookie in (1, 2):
        flow = ExpectedFlow(client=CLIENT, gate=GATE, origin=ORIGIN, process=CURL)
        stage.diversion.expect(flow, SocketTold(Transport.TCP, cookie))
        found = stage.gate.find(CLIENT, GATE, 0.0)
        assert found is not None
        assert found.origin.selected is (cookie == 1)


@pytest.mark.root
def test_where_notes_say_nothing_the_process_is_asked_about(kept: Kept) -> None:
    """Of datagrams, and of a socket that has gone."""
    stage = kept.stage()
    assert stage.concerns(0, Transport.UDP, cookie=1)
    assert stage.concerns(0, cookie=None)
    kept.judge(7, Verdict.SELECTED)
    assert stage.diversion.selects(7, SocketTold(Transport.UDP, 1))
    assert stage.diversion.selects(7, SocketTold(Transport.TCP))
