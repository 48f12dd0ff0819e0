"""Who a pid is, on Windows: met once, held open, and so never taken for another.

    refresh() ── pids ──► those that are new ──► open, read ──┐
                                                              ├─► lives, each with its handle ──► whose(pid, time)
    whose() ──── a pid that is not held ───────► open, read ──┘             └─► ended: let go of after ENDED_S

Windows gives a pid to nobody else while a handle of its process is open. So a process that was opened before a
connection was made is whose that is, though it may have ended since. One that was opened afterwards is, if it began
before: Windows tells a beginning a tick too early at most (TICK_NS), and what lies within that tick is `inferred`.

There is no word from the kernel about who begins. `refresh` sees who lives whenever it is called; who lives between two
calls is missed, and known by its pid alone, unless a connection of it is asked about while it lives. The first one
mostly is: its SYN is held until the owner was read, and few programs end before they are connected. (Windows' tracing,
ETW, would tell of all, but in batches, by default up to a second late; Win32_ProcessStartTrace is that, through COM.)

`unread` names what only Windows knows and was not found out yet. Arguments are not read: they hold secrets.
"""

from __future__ import annotations

import ntpath
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from mitmsec.core.model import Caller, Confidence, Fact, ParentProcess, Process, Value
from mitmsec_redirect.hashes import ExecutableHashes
from mitmsec_redirect.owner import Owner, rfc3339, settled, unhashed
from mitmsec_redirect.windows_signers import Signature, Signers

SOURCE = "windivert"
TICK_NS = 16_000_000  # of the system's clock, at most
ENDED_S = 60.0  # how long an ended process is held, and its pid with it
ENDED_LIMIT = 1024
HELD_LIMIT = 4096  # living ones
NEW_LIMIT = 200  # that one `refresh` meets: a millisecond each, under Wine
SERVICES_S = 2.0  # how long an answer about services serves for processes that are older than it
CONTROL_MANAGER = "services.exe"  # that of Windows, or of somebody who only costs us a question
ANCESTORS_LIMIT = 5
NOT_TOLD = 0  # stands for a pid that is not known
NETWORK = "\\\\"  # how a path begins that may lead to another machine


class Opened(Protocol):
    """A process that is held (`windows_system.OpenProcess`)."""

    @property
    def pid(self) -> int: ...
    @property
    def began_ns(self) -> int: ...
    def has_ended(self) -> bool: ...
    def exe(self) -> str | None: ...
    def parent(self) -> int | None: ...
    def user(self) -> str | None: ...
    def package(self) -> str | None: ...
    def runs(self, descriptor: int) -> bool | None: ...
    def close(self) -> None: ...


class System(Protocol):
    """Windows, as far as processes go (`windows_system.WindowsSystem`)."""

    def pids(self) -> list[int]: ...
    def open(self, pid: int) -> Opened | None: ...
    def services(self) -> Mapping[int, tuple[str, ...]]: ...
    def open_file(self, path: str) -> int: ...
    def signer(self, path: str, descriptor: int) -> str | None: ...


class Now(Value, frozen=True):
    """One moment by the clock of events (which never jumps), and by that of the system."""

    event_ns: int
    unix_ns: int


class Began(Value, frozen=True):
    """A process that `refresh` met for the first time."""

    process: Process


class Ended(Value, frozen=True):
    """One that it found ended."""

    process: Process


class _Life(msgspec.Struct, eq=False):
    opened: Opened
    held_ns: int  # by the clock of events: from then on its pid is nobody else's
    process: Process
    has_parents: bool = False  # its chain of parents was read
    is_told: bool = False
    sha256: Future[str | None] | None = None
    signature: Future[Signature | None] | None = None
    ended_ns: int | None = None


class _Services(msgspec.Struct):
    """By pid, as they were at a moment; None: not known."""

    at: Now = msgspec.field(default_factory=lambda: Now(0, 0))
    names: Mapping[int, tuple[str, ...]] | None = None


def now() -> Now:
    """The clock of events is QueryPerformanceCounter, in nanoseconds; WinDivert's stamps are its ticks."""
    return Now(time.perf_counter_ns(), time.time_ns())


class WindowsProcesses:
    """Processes by pid, as `processes.ProcessTable` has them on Linux. Not thread-safe; nothing waits for a hash
    or a signature: whoever asks again later is told more.
    """

    def __init__(self, system: System, hashes: ExecutableHashes | None = None, clock: Callable[[], Now] = now) -> None:
        self._system = system
        self._hashes = hashes or ExecutableHashes()
        self._signers = Signers(system.signer)
        self._clock = clock
        self._lives: dict[int, _Life] = {}  # the one asked about longest ago first
        self._services = _Services()
        self._told: dict[int, int] = {}  # by pid the beginnings of those that were let go of while they lived

    def refresh(self) -> list[Began | Ended]:
        """Who began and ended since the last call, at first all that live; who did both in between is missing.

        Of many that began, some are told at the next call.
        """
        at, pids = self._clock(), self._system.pids()
        self._told = {pid: self._told[pid] for pid in pids if pid in self._told} if self._told else {}
        self._meet(pids)
        new = [life for life in self._lives.values() if not life.is_told]
        began = [Began(self._with_parents(life)) for life in new]
        for life in new:
            life.is_told = True
        ended = list(self._ended(at))
        self._let_go(at)
        return [*began, *ended]

    def whose(
        self, pid: int, uid: int, comm: str, connected_ns: int | None = None, caller: Caller | None = None
    ) -> Owner:
        """The process that made a connection at `connected_ns` (None: just now). `uid` and `caller` are Linux'.

        Confidence.KERNEL: it was held by then, or had begun. INFERRED: it began in the same tick, so another may have
        had its pid; or its executable is not known. INFERRED, and no more than the pid: it cannot be asked, or began
        later.
        """
        at = self._clock()
        life = self._lives.pop(pid, None)
        if life is not None:
            self._lives[pid] = life
        elif (life := self._met(pid)) is not None:
            self._let_go(at)
        surety = Confidence.INFERRED if life is None else _surety(life, at, connected_ns)
        if life is None or surety is Confidence.UNKNOWN:
            return _only(pid, comm)
        self._begin_to_read(life)
        process = _with_signer(life, self._with_services(life, self._with_parents(life), at))
        return settled(Owner(msgspec.structs.replace(process, confidence=surety), life.sha256, life.signature))

    def close(self) -> None:
        """Let go of all of them. Idempotent."""
        for life in self._lives.values():
            life.opened.close()
        self._lives.clear()

    # -- lives ---------------------------------------------------------------------------------------------------------
    def _meet(self, pids: Sequence[int]) -> None:
        """Those that are not held, as far as there is room: one that is let go of now would only be met again."""
        room = min(NEW_LIMIT, HELD_LIMIT - sum(life.ended_ns is None for life in self._lives.values()))
        for pid in pids:
            if room <= 0:
                return
            if pid not in self._lives and self._met(pid) is not None:
                room -= 1

    def _met(self, pid: int) -> _Life | None:
        """Open it, and read what does not change."""
        opened = self._system.open(pid)
        if opened is None:
            return None
        exe = _written(opened.exe())
        process = Process(
            pid=pid,
            started=rfc3339(opened.began_ns / 1e9),
            exe=exe,
            name=None if exe is None else ntpath.basename(exe),
            user=_written(opened.user()),
            source=SOURCE,
            **_package(opened),
        )
        is_told = self._told.pop(pid, None) == opened.began_ns
        life = self._lives[pid] = _Life(opened, self._clock().event_ns, process, is_told=is_told)
        return life

    def _with_parents(self, life: _Life) -> Process:
        """Once for each: who lives now may have ended by the next time."""
        if not life.has_parents:
            chain = list(self._parents(life))
            parent: ParentProcess | None = None
            for pid, exe in reversed(chain):
                parent = ParentProcess(pid=pid, exe=exe, parent=parent)
            life.process, life.has_parents = msgspec.structs.replace(life.process, parent=parent), True
        return life.process

    def _parents(self, child: _Life) -> Iterator[tuple[int, str | None]]:
        """The parent, its parent and so on. Whoever has a parent's pid is it only if it began before the child."""
        for _ in range(ANCESTORS_LIMIT):
            pid = child.opened.parent()
            if pid == 0:
                return
            parent = None if pid is None else self._lives.get(pid) or self._met(pid)
            if parent is None or parent.opened.began_ns >= child.opened.began_ns:
                return (yield pid or NOT_TOLD, None)
            yield parent.process.pid, parent.process.exe
            child = parent

    def _ended(self, at: Now) -> Iterator[Ended]:
        for life in self._lives.values():
            if life.ended_ns is None and life.opened.has_ended():
                life.ended_ns = at.event_ns
                yield Ended(life.process)

    def _let_go(self, at: Now) -> None:
        """Of who ended long ago, and of who is too many: their pids may be used again."""
        ended = sorted((one.ended_ns, pid) for pid, one in self._lives.items() if one.ended_ns is not None)
        old_ns = at.event_ns - int(ENDED_S * 1e9)
        many = len(ended) - ENDED_LIMIT
        gone = [pid for place, (ended_ns, pid) in enumerate(ended) if ended_ns <= old_ns or place < many]
        living = [pid for pid, one in self._lives.items() if one.ended_ns is None]
        surplus = living[: max(len(living) - HELD_LIMIT, 0)]
        self._told |= {pid: self._lives[pid].opened.began_ns for pid in surplus if self._lives[pid].is_told}
        for pid in [*gone, *surplus]:
            self._lives.pop(pid).opened.close()

    # -- what takes longer ---------------------------------------------------------------------------------------------
    def _with_services(self, life: _Life, process: Process, at: Now) -> Process:
        is_old = at.event_ns - self._services.at.event_ns > SERVICES_S * 1e9
        is_new = life.opened.began_ns + TICK_NS >= self._services.at.unix_ns
        if is_new and not is_old and not _may_serve(process):
            return msgspec.structs.replace(process, services=())
        if is_old or is_new:
            try:
                self._services = _Services(at, self._system.services())
            except OSError:
                self._services = _Services(at, None)
        if self._services.names is None:
            return msgspec.structs.replace(process, unread=(*process.unread, Fact.SERVICES))
        return msgspec.structs.replace(process, services=self._services.names.get(process.pid, ()))

    def _begin_to_read(self, life: _Life) -> None:
        if life.sha256 is None:
            file = self._file_of(life)
            life.sha256 = unhashed() if file is None else self._hashes.begin(file, hash(life.process.user))
            file = self._file_of(life)
            life.signature = None if file is None else self._signers.begin(life.process.exe or "", file)

    def _file_of(self, life: _Life) -> int | None:
        """The file that lies where the process says, if it is what runs. Where Windows does not tell that, its times
        have to say that it has not been written or put there since.

        None of another machine's: whoever runs one would choose to whom we log on, and how long we wait for an answer.
        """
        exe = life.process.exe
        if exe is None or exe.startswith(NETWORK) or life.opened.has_ended():
            return None
        try:
            file = self._system.open_file(exe)
        except OSError:
            return None
        runs, status = life.opened.runs(file), os.fstat(file)
        is_later = max(status.st_mtime_ns, status.st_ctime_ns) > life.opened.began_ns + TICK_NS
        if runs is False or (runs is None and is_later):
            os.close(file)
            return None
        return file


def _may_serve(process: Process) -> bool:
    """Windows starts services by its service control manager; others that have any begin before it does."""
    parent = process.parent
    return parent is None or parent.exe is None or ntpath.basename(parent.exe).lower() == CONTROL_MANAGER


def _with_signer(life: _Life, process: Process) -> Process:
    signature = life.signature.result() if life.signature is not None and life.signature.done() else None
    if signature is None:
        return process
    unread = tuple(fact for fact in process.unread if fact is not Fact.SIGNER)
    return msgspec.structs.replace(process, signer=signature.subject, unread=unread)


def _only(pid: int, comm: str) -> Owner:
    """A process of which no more is known."""
    unread, confidence = tuple(Fact), Confidence.INFERRED
    return Owner(Process(pid=pid, name=comm or None, source=SOURCE, confidence=confidence, unread=unread))


def _written(name: str | None) -> str | None:
    """As text that can be written: halves of surrogate pairs, which names may have, become `?`, which no path has."""
    return None if name is None else name.encode(errors="replace").decode()


def _surety(life: _Life, at: Now, connected_ns: int | None) -> Confidence:
    """UNKNOWN: it is another that has the pid by now."""
    known = Confidence.KERNEL if life.process.exe is not None else Confidence.INFERRED
    if connected_ns is None or life.held_ns <= connected_ns:
        return known
    connected_unix_ns = at.unix_ns - (at.event_ns - connected_ns)
    if life.opened.began_ns > connected_unix_ns:
        return Confidence.UNKNOWN
    return known if life.opened.began_ns + TICK_NS <= connected_unix_ns else Confidence.INFERRED


def _package(opened: Opened) -> dict[str, Any]:
    try:
        return {"package": opened.package(), "unread": (Fact.SIGNER,)}
    except OSError:
        return {"unread": (Fact.PACKAGE, Fact.SIGNER)}
