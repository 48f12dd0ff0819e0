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
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mitmsec.core.model import Process, Value
from mitmsec.core.policy import Policy
from mitmsec.core.selection import Selection
from mitmsec.service.owners import told
from mitmsec.service.scopes import NOBODY, Heirs
from mitmsec_redirect import steps
from mitmsec_redirect.bpf import EbpfUnavailable
from mitmsec_redirect.cgroup import cgroup2_root
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.proc_files import ExePath, Found, living
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.process_records import Executable, ProcessEnded, ProcessEvent, ProcessExecuted, ProcessStarted
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.verdicts import Verdict, verdict_of

OURS = Verdict.OWN_TRAFFIC | Verdict.INHERITS
NOT_SELECTED = Verdict(0)
KERNEL_THREAD = ExePath()
SETTLED_NS = 50_000_000  # more than a tick of the clock that file systems take their times from
KNOWN_LIMIT = 8192  # files; then all are judged anew
BEGUN_LIMIT = 64  # processes, between two questions for them


class _Program(Value, frozen=True):
    """One program in one process: `entry` names it (mitmsec_redirect.verdicts)."""

    pid: int
    entry: int
    start_ticks: int
    uid: int
    comm: str

    @classmethod
    def of(cls, event: ProcessStarted | ProcessExecuted) -> _Program:
        return cls(event.pid, event.entry, event.started_ns // TICK_NS, event.uid, event.comm)


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
        self._known: dict[Executable, str] = {}  # files whose verdict is in the kernel, and the path that it is for
        self._events: deque[ProcessEvent | Scanned] = deque()
        self._begun: dict[int, None] = {}  # by pid: who has executed a program and is selected, the oldest first
        self._begun_more = 0  # that had to make room
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

    def selected_pids(self) -> list[int]:
        """Who is selected now, or may be; our own processes are not."""
        entries = {pid: verdict_of(number) for pid, number in self._monitor.entries().items()}
        if self._selection.is_everything:
            everybody = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
            entries = {pid: entries.get(pid, Verdict.SELECTED) | Verdict.SELECTED for pid in everybody}
        meant = Verdict.SELECTED | Verdict.UNDECIDED
        return [pid for pid, verdict in entries.items() if verdict & meant and not verdict & Verdict.OWN_TRAFFIC]

    def newly_selected(self) -> tuple[list[int], int]:
        """Who has executed a program since the last call, and is selected; of very many the last, and how many more."""
        found = list(self._begun), self._begun_more
        self._begun, self._begun_more = {}, 0
        return found

    def is_undecided(self, pid: int) -> bool:
        """Nobody has said yet whether the process is selected."""
        verdict = verdict_of(self._monitor.entry_of(pid)) & (Verdict.SELECTED | Verdict.UNDECIDED)
        return verdict == Verdict.UNDECIDED and not self._selection.is_everything

    def heirs(self) -> Heirs:
        """Of all who live, those that inherit. Their parents may have ended."""
        entries = {pid: verdict_of(number) for pid, number in self._monitor.entries().items()}
        found = {pid: verdict for pid, verdict in entries.items() if verdict & Verdict.INHERITED}
        return {(one.pid, one.start_ticks): found[one.pid] for one in living() if one.pid in found} if found else NOBODY

    def govern(self, policy: Policy, heirs: Heirs = NOBODY) -> None:
        self._selection = Selection(policy.applications)
        self._monitor.forget_executables()
        self._known.clear()
        self._know_named(policy)
        self._undecided.clear()
        self._judge_all(living())
        if heirs:
            self._give_back(heirs)

    def _give_back(self, heirs: Heirs) -> None:
        """They have again what they had inherited under this policy, and so has whom they have started meanwhile."""
        found = list(living())
        for one in found:
            if (inherited := heirs.get((one.pid, one.start_ticks))) is not None:
                entry = self._monitor.entry_of(one.pid)
                program = _Program(one.pid, entry, one.start_ticks, one.uid, one.comm)
                self._undecided.pop(one.pid, None)  # who inherits needs no decision
                self._give(program, (verdict_of(entry) | inherited) & ~Verdict.UNDECIDED)
        self._judge_all(one for one in found if (one.pid, one.start_ticks) not in heirs)

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
            case ProcessStarted() if verdict_of(event.entry) & Verdict.UNDECIDED:
                self._decide(_Program.of(event))
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
        self._note_begun(event.pid, verdict_of(event.entry))
        if self._has_moved(event):
            self._monitor.forget(self._forgotten(event))
        elif not verdict_of(event.entry) & Verdict.UNDECIDED:
            return
        self._decide(_Program.of(event))
        self._know_executed(event)

    def _decide(self, program: _Program) -> None:
        """By what it is itself, beside what it has inherited; once that is known, and unless it is another by then."""
        verdict = self._verdict(program)
        if verdict is None:
            self._undecided[program.pid] = program
            return
        self._undecided.pop(program.pid, None)
        before = verdict_of(program.entry)
        inherited = before & ~Verdict.UNDECIDED if before & Verdict.INHERITED else NOT_SELECTED
        self._give(program, verdict | inherited)

    def _note_begun(self, pid: int, verdict: Verdict) -> None:
        if verdict & Verdict.SELECTED and not verdict & Verdict.OWN_TRAFFIC:
            self._begun[pid] = None
            if len(self._begun) > BEGUN_LIMIT:
                del self._begun[next(iter(self._begun))]
                self._begun_more += 1

    def _give(self, program: _Program, verdict: Verdict) -> None:
        self._note_begun(program.pid, verdict)
        if program.entry:
            self._monitor.decide(program.pid, program.entry, verdict)
        elif verdict:
            self._monitor.adopt(program.pid, program.start_ticks, verdict)

    def _verdict(self, program: _Program) -> Verdict | None:
        process = told(self.processes.whose(program.pid, program.uid, program.comm))
        holds = self._selection.holds(process)
        if holds is None:
            return None
        return _selected(passes_on=self._selection.passes_on(process)) if holds else NOT_SELECTED

    def _judge_all(self, found: Iterable[Found]) -> None:
        """Those who ran before, or under another policy. Parents first: what they pass on, their children have."""
        found = sorted(found, key=lambda one: (one.start_ticks, one.pid))
        ours = _descendants(self._supervisor, found)
        for one in found:
            entry = self._monitor.entry_of(one.pid)
            if one.exe == KERNEL_THREAD or verdict_of(entry) & Verdict.OWN_TRAFFIC:
                continue
            if one.pid in ours:
                self._monitor.adopt(one.pid, one.start_ticks, OURS)
                continue
            if not entry and self._monitor.adopt(one.pid, one.start_ticks, Verdict.UNDECIDED):
                entry = self._monitor.entry_of(one.pid)
            self._judge(_Program(one.pid, entry, one.start_ticks, one.uid, one.comm), parent=one.parent)

    def _judge(self, program: _Program, *, parent: int) -> None:
        """As it is and as its parent is now; what it inherited under another policy is over."""
        verdict = self._verdict(program)
        if verdict_of(self._monitor.entry_of(parent)) & OURS == Verdict.INHERITS:
            self._give(program, (verdict or NOT_SELECTED) | _selected(passes_on=True) | Verdict.INHERITED)
        elif verdict is None:
            self._undecided[program.pid] = program
        else:
            self._give(program, verdict)

    # -- files ---------------------------------------------------------------------------------------------------------
    def _has_moved(self, event: ProcessExecuted) -> bool:
        """The file is known by another path: a folder above it was renamed, or somebody sees it elsewhere."""
        known = None if event.executable is None else self._known.get(event.executable)
        return known is not None and known != event.path

    def _forgotten(self, event: ProcessExecuted) -> Executable:
        assert event.executable is not None
        del self._known[event.executable]
        return event.executable

    def _know_executed(self, event: ProcessExecuted) -> None:
        """Whoever executes this file has the same verdict, if its path is true here, and its only one."""
        if event.executable is None or event.path is None or not self._selection.is_by_path:
            return
        process = self.processes.whose(event.pid, event.uid, event.comm).process
        if process.exe == event.path:
            self._know(event.path, event.executable)

    def _know_named(self, policy: Policy) -> None:
        """Files that the policy names in full are known before anybody executes them."""
        if not self._selection.is_by_path:
            return
        for path in {path for application in policy.applications for path in application.path}:
            if not any(char in path for char in "*?"):
                self._know(path)

    def _know(self, path: str, expected: Executable | None = None) -> None:
        """By its path alone, not by what started it this time."""
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            return
        file = Executable(_kernel_device(status.st_dev), status.st_ino, status.st_ctime_ns)
        if status.st_nlink != 1 or os.path.realpath(path) != path or expected not in (None, file):
            return
        if time.time_ns() - status.st_ctime_ns < SETTLED_NS:  # the next change could leave its time as it is
            return
        if len(self._known) >= KNOWN_LIMIT:
            self._monitor.forget_executables()
            self._known.clear()
        selected = self._selection.names(path)
        verdict = _selected(passes_on=self._selection.heirs_of(path)) if selected else NOT_SELECTED
        if self._monitor.know(file, verdict):
            self._known[file] = path


def _selected(*, passes_on: bool) -> Verdict:
    return Verdict.SELECTED | (Verdict.INHERITS if passes_on else NOT_SELECTED)


def _descendants(pid: int, found: Collection[Found]) -> set[int]:
    """`pid`, and of `found` those that it has started, and they."""
    ours = {pid}
    while more := {one.pid for one in found if one.parent in ours} - ours:
        ours |= more
    return ours


def _kernel_device(device: int) -> int:
    """A device number as the kernel keeps it (MKDEV), not as stat() tells it."""
    return os.major(device) << 20 | os.minor(device)


def _whole_hierarchy() -> Path:
    """The root of all cgroups. Raises EbpfUnavailable where only a part of them is visible."""
    root = cgroup2_root()
    if (root / "cgroup.type").exists():  # every cgroup has this file but the root
        raise EbpfUnavailable(
            f"{root} is a part of the machine's cgroups only",
            "Start the service outside of containers and cgroup namespaces; `mitmsec run` works here.",
        )
    return root
