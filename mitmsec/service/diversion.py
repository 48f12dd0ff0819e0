"""Which connections a diverter takes, and what becomes of them; and what it has to tell, until it tells it.

Asked by the threads of the backend, which hold connections up meanwhile. Nothing here waits.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from msgspec.structs import replace

from mitmsec.core.messages import Message
from mitmsec.core.model import Endpoint, OnFailure, Process, Quic, Transport
from mitmsec.service.divert_messages import DiverterFault, DiverterSettings, NotDiverted
from mitmsec_redirect.bpf import Map
from mitmsec_redirect.cgroup_ids import Scope
from mitmsec_redirect.divert_seams import SocketTold
from mitmsec_redirect.divert_signals import Choice, Report
from mitmsec_redirect.expected_flows import ExpectedFlow, announce
from mitmsec_redirect.records import Reason
from mitmsec_redirect.runs import RunMembers
from mitmsec_redirect.verdicts import ENTRY, PID, Verdict, verdict_of

STALLED_S = 1.0  # without a heartbeat of the gate
TOLD_LIMIT = 512  # attempts between two tellings, of which there are five a second
FAULTS_LIMIT = 64  # kinds of them, likewise


class Reports:
    """What the backend's threads have seen, until the loop tells it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._missed: deque[NotDiverted] = deque()
        self._faults: dict[tuple[str, OnFailure], tuple[str, int]] = {}
        self._untold: Counter[str] = Counter()

    def missed(self, one: NotDiverted) -> None:
        with self._lock:
            if len(self._missed) < TOLD_LIMIT:
                self._missed.append(one)
            else:
                self._untold[one.reason] += 1

    def fault(self, report: Report, times: int = 1) -> None:
        with self._lock:
            key = report.what, report.failed
            detail, count = self._faults.get(key, (report.detail, 0))
            if key in self._faults or len(self._faults) < FAULTS_LIMIT:
                self._faults[key] = detail, count + times

    def untold(self) -> dict[str, int]:
        """How many attempts of each reason could not be kept until they were told."""
        with self._lock:
            return dict(self._untold)

    def take(self) -> list[Message]:
        """All of it, once."""
        with self._lock:
            missed, self._missed = self._missed, deque()
            faults, self._faults = self._faults, {}
        told = [
            DiverterFault(what=what, failed=failed, detail=detail, count=count)
            for (what, failed), (detail, count) in faults.items()
        ]
        return [*missed, *told]


class Standing:
    """A standing selection, as the process monitor and the supervisor keep it in the kernel.

    `noted` says of the cookie of a TCP socket which verdict its caller had in connect(); None: it meant none of ours.
    """

    def __init__(self, verdicts_fd: int, runs_fd: int, noted: Callable[[int], Verdict | None] | None = None) -> None:
        self._verdicts = Map(verdicts_fd, PID.size, ENTRY.size)
        self._runs = RunMembers(runs_fd)
        self._noted = noted

    def verdict(self, pid: int) -> Verdict | None:
        """None: nobody has judged it."""
        value = self._verdicts.lookup(PID.pack(pid))
        return None if value is None else verdict_of(ENTRY.unpack(value)[0])

    def selects(self, pid: int, *, everything: bool) -> bool:
        """As the connect hook does: also who is still to be judged."""
        verdict = self.verdict(pid)
        if verdict is None:
            return everything
        is_meant = everything or bool(verdict & (Verdict.SELECTED | Verdict.UNDECIDED))
        return is_meant and not verdict & Verdict.OWN_TRAFFIC

    def note_of(self, told: SocketTold) -> Verdict | None:
        """What was noted of the connection; None also where notes say nothing, of UDP and of sockets that have gone."""
        if self._noted is None or told.transport is not Transport.TCP or told.cookie is None:
            return None
        return self._noted(told.cookie)

    def may_mean(self, told: SocketTold) -> bool:
        """False: it is certainly none of ours. What is in a run's cgroup, the run's own hook diverts."""
        if self._runs.hold(told.cgroup):
            return False
        says_nothing = self._noted is None or told.transport is not Transport.TCP or told.cookie is None
        return says_nothing or self.note_of(told) is not None


class Diversion:
    """What the backend's threads ask: whether a connection is ours to divert, and what becomes of it."""

    def __init__(
        self, settings: DiverterSettings, teller: socket.socket, reports: Reports, standing: Standing | None = None
    ) -> None:
        self.settings = settings
        self._teller, self._reports, self._standing = teller, reports, standing
        self._scope = Scope(settings.cgroup)
        self.beat_ns = time.monotonic_ns()  # the first heartbeat is due within a second

    def concerns(self, told: SocketTold) -> bool:
        """Where the kernel does not say, it is asked about. A cgroup that has gone was none of a run that lives."""
        if told.transport is Transport.UDP and self.settings.quic.unled is not Quic.REFUSE:
            return False
        if self._standing is not None:
            return self._standing.may_mean(told)
        return not told.cgroup or self._scope.holds(told.cgroup) is True

    def selects(self, pid: int, told: SocketTold) -> bool:
        """By what its connect() was noted as; else by what is known of the process now."""
        if self._standing is None or self._standing.note_of(told) is not None:
            return True
        return self._standing.selects(pid, everything=self.settings.everything)

    def decide(self, process: Process, remote: Endpoint, told: SocketTold) -> Choice:
        if told.transport is Transport.UDP:
            if self.settings.quic.unled is not Quic.REFUSE:
                return Choice.LEAVE
            self._missed(Reason.QUIC_REFUSED, process, remote, told.transport, denied=True)
            return Choice.DENY
        if time.monotonic_ns() - self.beat_ns <= STALLED_S * 1e9:
            return Choice.DIVERT
        if self._is_unjudged(process.pid, told):
            return Choice.LEAVE  # what fails here is not to fall on the unselected
        is_closed = self.settings.on_failure is OnFailure.CLOSED
        self._missed(Reason.GATE_STALLED, process, remote, told.transport, denied=is_closed)
        return Choice.DENY if is_closed else Choice.LEAVE

    def _is_unjudged(self, pid: int, told: SocketTold) -> bool:
        if self._standing is None or self.settings.everything:
            return False
        note = self._standing.note_of(told)
        verdict = self._standing.verdict(pid) if note is None else note
        return not (verdict or Verdict(0)) & Verdict.SELECTED

    def expect(self, flow: ExpectedFlow, told: SocketTold) -> None:
        if self._is_unjudged(flow.origin.pid, told):
            flow = replace(flow, origin=replace(flow.origin, selected=False))
        announce(self._teller, flow)

    def _missed(
        self, reason: Reason, process: Process, remote: Endpoint, transport: Transport, *, denied: bool
    ) -> None:
        at_ns = time.monotonic_ns()
        one = NotDiverted(
            reason=reason, transport=transport, remote=remote, process=process, at_ns=at_ns, denied=denied
        )
        self._reports.missed(one)
