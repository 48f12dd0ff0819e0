"""The diverter's composition root: packets of one network namespace, each to the gate or where it was going.

    supervisor ── DiverterSettings ─► Ready · Stall, Change, Detach, Close ─►   ◄─ NotDiverted, faults, status
    kernel     ── first packet ─► whose socket? ─┬─ another's ──► on, unread
                                                 └─ the run's; ──► gate alive? ─┬─ yes ─► announced, diverted
                                                    noted in connect()          └─ no ──► on_failure
    gate       ── heartbeat (eventfd) ─► this loop

A process of its own, since it needs root, its threads stand between every new connection of the namespace and the
network, and it must outlive the supervisor where the policy says closed: then it refuses the command's connections
until the command has ended. A second one in the same namespace would take the first one's packets: it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import Message, Ready
from mitmsec.core.model import OnFailure, Quic
from mitmsec.service import child
from mitmsec.service.diversion import Diversion, Reports, Standing
from mitmsec.service.divert_messages import (
    TO_DIVERTER,
    AllTold,
    Change,
    Close,
    Detach,
    DiverterRefused,
    DiverterSettings,
    DiverterStatus,
    Stall,
)
from mitmsec_redirect import windivert
from mitmsec_redirect.backend import BackendUnavailable
from mitmsec_redirect.bystanders import Bystanders
from mitmsec_redirect.call_notes import CallNotes
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_notes import ConnectNotes
from mitmsec_redirect.divert_seams import Callbacks
from mitmsec_redirect.divert_signals import Report
from mitmsec_redirect.filters import Own, Ports
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.windivert import Windivert

CLAIMS = Path("/run")  # where only root can make a file, so that nobody else can take one; it is locked, and stays
STATUS_S = 0.2
LOOK_S = 0.1
GATE_END_S = 1.0  # the gate ends with its supervisor, not before
NICENESS = -10  # whoever connects waits for it
COLLAPSED = 70  # exit status, EX_SOFTWARE
SWITCH_S = 0.0005  # between threads: a first packet is not to wait for a diverted flow's batch
MACHINE_REMEDY = (
    "`--backend windivert` is for Windows, and on Linux for tests: it needs root, cgroup v2, CONFIG_NET_CLS_BPF and "
    "pydivert 4. Without --backend a run takes the connect hook."
)


class DiverterProgram:
    """Program of the diverter process."""

    def __init__(self, control: Channel) -> None:
        self._control = control
        self._reports = Reports()
        self._backend: Windivert | None = None
        self._notes: ConnectNotes | None = None  # of a service's programs
        self._calls: CallNotes | None = None  # of a run's
        self._unnoted: Counter[str] = Counter()
        self._telling: asyncio.Task[None] | None = None
        self._claim = -1
        self._is_closing = False

    async def start(self, settings: DiverterSettings, fds: list[int]) -> Message:
        """Take packets from now on."""
        heartbeat_fd, teller_fd, *maps = fds
        self._heartbeat, self._loop = Pulse(heartbeat_fd), asyncio.get_running_loop()
        try:
            self._claim = claimed()
        except BlockingIOError:
            self._is_closing = True
            return DiverterRefused(
                reason="another run diverts with windivert in this network namespace",
                remedy="Wait until it has ended, or take another backend.",
            )
        try:
            standing = self._noting(settings, *maps) if settings.is_standing else None
            self._diversion = Diversion(settings, socket.socket(fileno=teller_fd), self._reports, standing)
            self._backend = await asyncio.to_thread(self._opened, settings)
        except (OSError, ImportError, BackendUnavailable) as error:
            self._is_closing = True
            return DiverterRefused(reason=f"windivert cannot be opened: {error}", remedy=MACHINE_REMEDY)
        self._diversion.beat_ns = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        loop.add_reader(heartbeat_fd, self._beaten)
        loop.add_signal_handler(signal.SIGUSR1, self._released)
        self._telling = asyncio.create_task(self._tell())
        return Ready()

    def _noting(self, settings: DiverterSettings, verdicts_fd: int, runs_fd: int) -> Standing:
        """Whom the selection means is noted from now on. Raises EbpfUnavailable, ProgramRejected, OSError."""
        selection = Selection(verdicts_fd, runs_fd, everything=settings.everything)
        self._notes = ConnectNotes.open(selection, settings.on_failure)
        return Standing(verdicts_fd, runs_fd, self._notes.verdict_of)

    def _reported(self, report: Report) -> None:
        """By a thread of the backend's. One that has failed is worth nothing: the supervisor starts another process."""
        self._reports.fault(report)
        if report.what == "backend_failed":
            self._loop.call_soon_threadsafe(self._collapse)

    def _collapse(self) -> None:
        if not self._control.closed:  # else it is all that still refuses
            self._tell_now()
            os._exit(COLLAPSED)

    def _opened(self, settings: DiverterSettings) -> Windivert:
        windivert.reap()  # what another one has left is not to stand in the way
        diversion = self._diversion
        callbacks = Callbacks(
            decide=diversion.decide,
            expect=diversion.expect,
            report=self._reported,
            concerns=diversion.concerns,
            selects=diversion.selects,
        )
        own = Own(
            gate_port=settings.gate_port, upstream=Ports(first=settings.local_ports[0], last=settings.local_ports[1])
        )
        quic = Quic.REFUSE if settings.is_standing else settings.quic  # a service's may change
        if self._notes is not None:
            bystanders, calls = partial(Bystanders.unnoted, self._notes.sockets_fd), None
        else:
            self._calls = CallNotes.open(settings.cgroup)
            bystanders, calls = partial(Bystanders.outside, Path(settings.cgroup)), self._calls.call_of
        return Windivert.open(
            own, callbacks, on_failure=settings.on_failure, quic=quic, bystanders=bystanders, calls=calls
        )

    def told(self, message: Stall | Change | Detach | Close, fds: list[int]) -> None:
        """A later message of the supervisor."""
        close_all(fds)
        match message:
            case Stall():
                self._heartbeat.heard()  # what it beat before does not count
                self._diversion.beat_ns = 0
            case Change(on_failure=on_failure, quic=quic, everything=everything):
                terms = msgspec.structs.replace(
                    self._diversion.settings, on_failure=on_failure, quic=quic, everything=everything
                )
                self._change(terms)
            case Detach():
                if self._backend is not None:
                    asyncio.get_running_loop().run_in_executor(None, self._backend.detach)
            case Close():
                self._is_closing = True
                self._tell_now()
                self._control.send(AllTold())

    def _change(self, terms: DiverterSettings) -> None:
        """One that cannot note by the new terms is worth nothing: the next one begins with them."""
        self._diversion.settings = terms
        if self._backend is not None:
            self._backend.follow(terms.on_failure)
        if self._notes is not None:
            try:
                self._notes.change(terms.on_failure, everything=terms.everything)
            except (OSError, BackendUnavailable) as error:
                self._reported(Report(what="backend_failed", failed=terms.on_failure, detail=str(error)))

    async def stop(self) -> None:
        """The supervisor has gone, or wants an end. Nothing of ours is left when this returns."""
        if self._telling is not None:
            self._telling.cancel()
        if self._backend is not None:
            self._diversion.beat_ns = 0  # the gate ends with its supervisor
            if not self._is_closing:
                await self._outlive()
                await asyncio.to_thread(self._backend.detach)
                await asyncio.sleep(GATE_END_S)  # else the resets of its connections would not come to the programs
            await asyncio.to_thread(self._backend.close)
        for notes in (self._notes, self._calls):
            if notes is not None:
                notes.close()
        if self._claim >= 0:
            os.close(self._claim)

    async def _outlive(self) -> None:
        """Closed: refuse until the command has ended; a service's programs, until somebody gives an order."""
        terms = self._diversion.settings
        cgroup = SessionCgroup(Path(terms.cgroup))
        while terms.on_failure is OnFailure.CLOSED and not self._is_closing:
            if not terms.is_standing and not cgroup.is_populated():
                return
            await asyncio.sleep(LOOK_S)

    def _released(self) -> None:
        """`mitmsec clean`: the network opens. While the supervisor lives, it alone gives orders."""
        self._is_closing = self._is_closing or self._control.closed

    def _beaten(self) -> None:
        if self._heartbeat.heard():
            self._diversion.beat_ns = time.monotonic_ns()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            self._tell_now()

    def _tell_now(self) -> None:
        if self._notes is not None:
            self._count_unnoted(Counter(self._notes.unnoted))
        with contextlib.suppress(ChannelFull):  # a supervisor that hangs; it will end us, or end
            for message in self._reports.take():
                self._control.send(message)
            self._control.send(self._status())

    def _count_unnoted(self, so_far: Counter[str]) -> None:
        failed = self._diversion.settings.on_failure
        for reason, count in (so_far - self._unnoted).items():
            self._reports.fault(Report(what=reason, failed=failed, detail="connections that were not noted"), count)
        self._unnoted = so_far

    def _status(self) -> DiverterStatus:
        assert self._backend is not None
        return DiverterStatus(
            beat_ns=self._diversion.beat_ns,
            diverted=self._backend.diverted,
            untold=self._reports.untold(),
        )


def claimed() -> int:
    """A descriptor that holds this network namespace for us, as long as it is open. Raises BlockingIOError, OSError."""
    space = os.stat("/proc/self/ns/net")
    path = CLAIMS / f"mitmsec-diverter-{space.st_dev:x}-{space.st_ino}"
    claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(claim)
        raise
    return claim


def main() -> None:
    """Arguments: the control channel's descriptor, that of the namespace to work in, and the session's label."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with its supervisor, or as the policy says
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    sys.setswitchinterval(SWITCH_S)
    os.chdir("/")
    os.setns(int(sys.argv[2]), os.CLONE_NEWNET)
    child.main([DiverterSettings, *TO_DIVERTER], DiverterProgram, seal=_unsealed)


def _unsealed() -> None:
    """A new filter is a new handle, and the library starts a thread for each."""
