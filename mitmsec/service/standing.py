"""The scope of the service: whom the policy selects, in all cgroups of the machine.

    kernel ── fork, exec, exit ──► entries (by process) ◄── asked by the hook in each connect()
                   │                     ▲
                   └─► monitor ─► judge ─┘ by the policy      a file that was judged is known in the kernel from then on

A program that executes a known file has its verdict before its first instruction; one that executes another file is
*undecided* for the fraction of a millisecond until it is judged here. Whoever connects while undecided is diverted, and
the gate asks `selects` before it does anything else. So nobody's first connection is missed, and nobody who is not
selected is kept.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitmsec.core.model import Process
from mitmsec.core.policy import Policy
from mitmsec.core.selection import Selection
from mitmsec.service.owners import told
from mitmsec_redirect import steps
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.proc_files import ExePath, Found, living
from mitmsec_redirect.process_records import Executable, ProcessEnded, ProcessEvent, ProcessExecuted, ProcessStarted
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.verdicts import Verdict, verdict_of

OURS = Verdict.OWN_TRAFFIC | Verdict.INHERITS
NOT_SELECTED = Verdict(0)
KERNEL_THREAD = ExePath()


@dataclass(frozen=True, slots=True)
class _Program:
    """One program in one process: `entry` names it (mitmsec_redirect.verdicts)."""

    pid: int
    entry: int
    uid: int
    comm: str


class StandingScope:
    """Made on the loop that drains the monitor. Not thread-safe."""

    def __init__(self, policy: Policy, supervisor: int | None = None) -> None:
        """Everybody who lives is judged when this returns. Raises EbpfUnavailable, ProgramRejected, OSError.

        What the process `supervisor` (this one) and its descendants send is own traffic.
        """
        self._supervisor = supervisor or os.getpid()
        self.path = _whole_hierarchy()
        self._selection = Selection(policy.applications)
        self._undecided: dict[int, _Program] = {}  # by pid: those whose hash decides, and is still to come
        self._events: deque[ProcessEvent | Scanned] = deque()
        self._is_judging = False
        self._monitor = Monitor.open()
        self.processes = ProcessTable(monitor=self._monitor, heard=self._heard)
        try:
            self._runs = RunCgroups()
            self._know_named(policy)
            self.processes.refresh()
        except BaseException:
            self._monitor.close()
            raise
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self.processes.refresh)

    @property
    def selection(self) -> steps.Selection:
        return steps.Selection(self._monitor.selected_fd, self._runs.fd, everything=self._selection.is_everything)

    def selects(self, process: Process) -> bool:
        """Who cannot be judged counts as selected: what is done with them is then the policy's word on failures."""
        if verdict_of(self._monitor.entry_of(process.pid)) & Verdict.SELECTED:
            return True  # also who has inherited it
        return self._selection.holds(process) is not False

    def govern(self, policy: Policy) -> None:
        self._selection = Selection(policy.applications)
        self._monitor.forget_executables()
        self._know_named(policy)
        self._undecided.clear()
        self._judge_all(living())

    def own(self, pid: int) -> None:
        """What we start has inherited it."""

    def leave_out(self, others: Collection[Path]) -> None:
        self._runs.are(others)

    def pin(self, folder: Path) -> None:
        self._monitor.pin(folder)

    def look(self) -> None:
        for program in list(self._undecided.values()):
            self._decide(program)

    def is_populated(self) -> bool:
        """An order to end the service is an order to let go of everybody."""
        return False

    def pids(self) -> list[int]:
        return []

    async def release(self, home: str | None) -> int:
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())
        self.processes.close()
        self._monitor.close()
        self._runs.close()
        return 0

    # -- as it happens -------------------------------------------------------------------------------------------------
    def _heard(self, events: Sequence[ProcessEvent | Scanned]) -> None:
        """In order, one after the other: to judge one means to ask the table, which may hear of the next meanwhile."""
        self._events.extend(events)
        if self._is_judging:
            return
        self._is_judging = True
        try:
            while self._events:
                self._happened(self._events.popleft())
        finally:
            self._is_judging = False

    def _happened(self, event: ProcessEvent | Scanned) -> None:
        match event:
            case ProcessExecuted():
                self._executed(event)
            case ProcessStarted(entry=0, forker=forker) if verdict_of(self._monitor.entry_of(forker)):
                self._judge_all(one for one in living() if one.pid == event.pid)  # forked before its parent was judged
            case ProcessEnded(pid=pid):
                self._undecided.pop(pid, None)
            case Scanned(found=found):
                self._judge_all(found)
            case _:
                pass

    def _executed(self, event: ProcessExecuted) -> None:
        self._undecided.pop(event.pid, None)
        if not verdict_of(event.entry) & Verdict.UNDECIDED:
            return
        verdict = self._decide(_Program(event.pid, event.entry, event.uid, event.comm))
        if verdict is not None and event.executable is not None and self._is_settled_by(event.executable, event.pid):
            self._monitor.know(event.executable, verdict)

    def _decide(self, program: _Program) -> Verdict | None:
        """Its own verdict, without what it has inherited. None: not known yet, or something else runs meanwhile."""
        verdict = self._verdict(program)
        if verdict is None:
            self._undecided[program.pid] = program
            return None
        self._undecided.pop(program.pid, None)
        before = verdict_of(program.entry)
        inherited = before & ~Verdict.UNDECIDED if before & Verdict.INHERITED else NOT_SELECTED
        return verdict if self._monitor.decide(program.pid, program.entry, verdict | inherited) else None

    def _verdict(self, program: _Program) -> Verdict | None:
        process = told(self.processes.whose(program.pid, program.uid, program.comm))
        holds = self._selection.holds(process)
        if holds is None:
            return None
        if not holds:
            return NOT_SELECTED
        return Verdict.SELECTED | (Verdict.INHERITS if self._selection.passes_on(process) else NOT_SELECTED)

    def _judge_all(self, found: Iterable[Found]) -> None:
        """Those who ran before, or under another policy. Each gets an entry, and is decided as if it just began."""
        found = list(found)
        ours = _descendants(self._supervisor, found)
        for one in found:
            entry = self._monitor.entry_of(one.pid)
            if one.exe == KERNEL_THREAD:
                continue
            if one.pid in ours and not entry:
                self._monitor.adopt(one.pid, one.start_ticks, OURS)
            elif not verdict_of(entry) & Verdict.OWN_TRAFFIC:
                if not entry and self._monitor.adopt(one.pid, one.start_ticks, Verdict.UNDECIDED):
                    entry = self._monitor.entry_of(one.pid)
                self._decide(_Program(one.pid, entry, one.uid, one.comm))

    # -- files ---------------------------------------------------------------------------------------------------------
    def _is_settled_by(self, executable: Executable, pid: int) -> bool:
        """Whoever executes this file has the same verdict: it has one name, and nothing but its name is asked."""
        if not self._selection.is_by_path:
            return False
        try:
            status = os.stat(f"/proc/{pid}/exe")
        except OSError:
            return False
        return status.st_nlink == 1 and _is(executable, status)

    def _know_named(self, policy: Policy) -> None:
        """Files that the policy names in full are known before anybody executes them."""
        if not self._selection.is_by_path:
            return
        for application in policy.applications:
            verdict = Verdict.SELECTED | (Verdict.INHERITS if application.children else NOT_SELECTED)
            for path in application.path:
                if not any(char in path for char in "*?"):
                    self._know(path, verdict)

    def _know(self, path: str, verdict: Verdict) -> None:
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            return
        if status.st_nlink == 1 and os.path.realpath(path) == path:
            self._monitor.know(Executable(_kernel_device(status.st_dev), status.st_ino, status.st_ctime_ns), verdict)


def _descendants(pid: int, found: Collection[Found]) -> set[int]:
    """`pid`, and of `found` those that it has started, and they."""
    ours = {pid}
    while more := {one.pid for one in found if one.parent in ours} - ours:
        ours |= more
    return ours


def _kernel_device(device: int) -> int:
    """A device number as the kernel keeps it (MKDEV), not as stat() tells it."""
    return os.major(device) << 20 | os.minor(device)


def _is(executable: Executable, status: os.stat_result) -> bool:
    return (executable.device, executable.inode, executable.ctime_ns) == (
        _kernel_device(status.st_dev),
        status.st_ino,
        status.st_ctime_ns,
    )


def _whole_hierarchy() -> Path:
    """The root of all cgroups. Raises EbpfUnavailable where only a part of them is visible."""
    root = cgroup2_root()
    if (root / "cgroup.type").exists():  # every cgroup has this file but the root
        raise EbpfUnavailable(
            f"{root} is a part of the machine's cgroups only",
            "Start the service outside of containers and cgroup namespaces; `mitmsec run` works here.",
        )
    return root
