"""Who a pid is: read from /proc once, and remembered as long as it is still the same process and the same program.

A pid alone names nobody: it is reused, and exec() gives the same pid and start time another program. So the folder
/proc/PID of a process that was read is kept open: through that descriptor the kernel answers about this process or,
once it has ended, not at all, whoever has its pid by then. One stat of `exe` below it is all that a connection of a
remembered process costs; what is remembered holds while that is still the same file. The executable is hashed through
/proc/PID/exe, which is the program that runs even if another file has its name by now (see mitmsec_redirect.hashes).

With a process monitor there is also what the kernel told as it happened (`process_history`), and that decides:

    pid, time of connect() ──► the life that had the pid then, its last program before ──┬─ /proc agrees ► what is read
                                                                                         └─ else ► what was recorded

so a process that lived a millisecond is known by what it executed, and one that has executed something else since is
not taken for that. What is not certain (records were lost) is not told at all. Without a monitor, who called decides,
as the connect hook saw it (`callers`); without that, the time of the call against the start that /proc tells.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import msgspec
from msgspec.structs import replace

from mitmsec.core.model import Caller, Confidence, ParentProcess, Process, Value
from mitmsec_redirect import callers, cgroup_path, proc_files
from mitmsec_redirect.callers import Callers
from mitmsec_redirect.cgroup_ids import CgroupPaths
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.hashes import ExecutableHashes, FileIdentity, Remembered, can_be_remembered, identity_of
from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.owner import Owner, chained, displayed, rfc3339, settled, unhashed, user_name
from mitmsec_redirect.proc_files import ExePath, Found
from mitmsec_redirect.process_history import TICK_NS, Life, ProcessHistory, Program, Sighting
from mitmsec_redirect.process_records import Executable, ProcessEnded, ProcessEvent

PROCESSES_LIMIT = 256  # each holds a descriptor
USERS_LIMIT = 1024
USER_S = 60.0  # how long a user's name is remembered
START_TIME_SLACK_S = 0.05  # start times have a resolution of one clock tick, mostly 0.01 s
ANCESTORS_LIMIT = 5  # the parent included; they stand in every event
NOT_KEPT = -1

type Heard = Callable[[Sequence[ProcessEvent | Scanned]], None]


class _Known(Value, frozen=True):
    """A process that was read."""

    folder: int  # NOT_KEPT: closed again
    identity: FileIdentity | None
    start_ticks: int
    files: frozenset[tuple[int, int]]  # device and inode of the executable, as the monitor may tell them
    owner: Owner


class ProcessTable:
    """Processes by pid. Not thread-safe; nothing here waits for a hash.

    The monitor, if there is one, stays its owner's; what it tells goes to `heard` too, once, in order. So do `paths`,
    which the hooks of its callers are to fill.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        hashes: ExecutableHashes | None = None,
        monitor: Monitor | None = None,
        heard: Heard | None = None,
        paths: ExecutablePaths | None = None,
    ) -> None:
        self.paths = paths
        self._proc = str(proc)
        self._hashes = hashes or ExecutableHashes()
        self._boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._known: dict[int, _Known] = {}  # least recently used first
        self._callers: Callers[Owner] = Callers(paths)
        self._users: Remembered[int, tuple[float, str]] = Remembered(USERS_LIMIT)
        self._monitor = monitor
        self._heard = heard
        self._history = ProcessHistory()
        self._cgroups = CgroupPaths()
        self._our_mounts = os.stat("/proc/self/ns/mnt").st_ino

    def refresh(self) -> None:
        """Take what the monitor has to tell; call when its descriptor is readable. `whose` does so by itself."""
        events = self._monitor.drain() if self._monitor is not None else []
        for event in events:
            if isinstance(event, Scanned):
                sightings = [self._sighting(found, event.ended_ns) for found in event.found]
                self._history.scanned(event.began_ns, event.ended_ns, sightings, has_lost=event.lost > 0)
                continue
            self._history.apply(event)
            if not isinstance(event, ProcessEnded):
                self._cgroups.path_of(event.cgroup)  # while it is there
        if events and self._heard is not None:
            self._heard(events)

    def whose(
        self, pid: int, uid: int, comm: str, connected_ns: int | None = None, caller: Caller | None = None
    ) -> Owner:
        """The process that the kernel named at connect() (at `connected_ns`, CLOCK_MONOTONIC; None: just now).

        Confidence.KERNEL: it was read while it lived (with `caller`: while it ran the program that called), or the
        monitor recorded what it executed, and in which cgroup (no unit and no container are then none), or it has ended
        and the file that it ran is known. INFERRED: none of these, or not all of it, or another process has its pid by
        now; then little more than pid, `comm`, the user and what `caller` says may be known.
        """
        user = self._user(uid)
        known = self._remembered(pid) or self._read(pid, uid)
        self.refresh()
        at_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) if connected_ns is None else connected_ns
        life = self._history.at(pid, at_ns)
        owner: Owner | None
        if caller is not None and (life is None or not _is_life(life, at_ns, caller)):
            owner = self._called(pid, uid, comm, caller, known)
        elif life is None:
            owner = None if known is None or self._is_later(known, at_ns) else known.owner
        elif known is not None and _agrees(known, life, at_ns):
            owner = self._with_parents(known.owner, life)
        else:
            owner = self._recorded(life, at_ns, uid)
        if owner is None:
            return Owner(Process(pid=pid, name=comm or None, user=user, uid=uid, confidence=Confidence.INFERRED))
        if (owner.process.user, owner.process.uid) != (user, uid):
            return Owner(msgspec.structs.replace(owner.process, user=user, uid=uid), owner.sha256)
        return owner

    def has_seen(self, pid: int, at_ns: int) -> bool:
        """Whether the monitor has told of who had `pid` then, so that `whose` answers by that."""
        return self._history.at(pid, at_ns) is not None

    def close(self) -> None:
        """Let go of the descriptors."""
        for pid in list(self._known):
            self._forget(pid)

    def _is_later(self, known: _Known, connected_ns: int) -> bool:
        slept_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        started_s = known.start_ticks / proc_files.TICKS_PER_S
        return started_s > connected_ns / 1e9 + slept_s + START_TIME_SLACK_S

    # -- called --------------------------------------------------------------------------------------------------------
    def _called(self, pid: int, uid: int, comm: str, caller: Caller, known: _Known | None) -> Owner:
        """By what the kernel said of the caller, and what agrees with that."""
        before = self._callers.find(pid, caller)
        if known is not None and known.folder != NOT_KEPT:
            if before is known.owner:  # which is remembered only while the same program runs
                return before
            if callers.runs_still(known.folder, caller, known.start_ticks):
                self._callers.keep(pid, caller, known.owner, known.owner.process.exe)
                return known.owner
        if before is not None:
            return settled(before)
        path = self._callers.path_of(caller) if self._monitor is None else None  # it knows better, unless it has lost
        process = Process(
            pid=pid,
            started=rfc3339(self._boot_s + callers.start_ticks(caller) / proc_files.TICKS_PER_S),
            exe=displayed(path),
            name=comm or None,
            user=self._user(uid),
            uid=uid,
            parent=self._parents_of(caller),
            confidence=Confidence.INFERRED if path is None else Confidence.KERNEL,
        )
        executable = callers.executable_of(caller)
        if path is None or executable is None:
            return Owner(process)
        return settled(Owner(process, self._sha256_at(path, executable, uid)))

    def _parents_of(self, caller: Caller) -> ParentProcess | None:
        """The parent that the kernel told, and more of it if it still lives."""
        if not caller.parent:
            return None
        found = self._parents(caller.parent)
        status = proc_files.status_of_pid(caller.parent, self._proc)  # afterwards: so it had that pid all the time
        is_it = status is not None and status.start_ticks == caller.parent_start_ns // TICK_NS
        return found if is_it else ParentProcess(pid=caller.parent)

    # -- recorded ------------------------------------------------------------------------------------------------------
    def _sighting(self, found: Found, at_ns: int) -> Sighting:
        program = Program(
            since_ns=at_ns,
            comm=found.comm,
            uid=found.uid,
            path=found.exe.path or found.exe.claimed,
            mount_namespace=self._our_mounts if found.exe.path is not None else 0,
            executable=found.executable,
            is_told=False,
        )
        return Sighting(pid=found.pid, start_ticks=found.start_ticks, parent=found.parent, program=program)

    def _recorded(self, life: Life, at_ns: int, uid: int) -> Owner | None:
        """The process as it was then; None where that is not certain."""
        program = life.program_at(at_ns)
        if not self._history.is_certain(program, at_ns):
            return None
        exe = self._exe_of_program(program)
        cgroup = self._cgroups.path_of(program.cgroup)
        names = cgroup_path.names_of(cgroup or "")
        sha256 = self._sha256_at(exe.path or "", program.executable, uid) if program.executable is not None else None
        started_ns = life.started_ns if life.started_ns is not None else life.start_ticks * TICK_NS
        process = Process(
            pid=life.pid,
            started=rfc3339(self._boot_s + started_ns / 1e9),
            exe=displayed(exe.path),
            claimed_exe=displayed(exe.claimed),
            name=program.comm,
            user=self._user(uid),
            uid=uid,
            unit=displayed(names.unit),
            container=displayed(names.container),
            confidence=_surety(exe, cgroup),
        )
        return self._with_parents(settled(Owner(process, sha256)), life)

    def _exe_of_program(self, program: Program) -> ExePath:
        """Its path is true if it was meant in our mount namespace, or leads here to the same file."""
        if program.path is None:
            return ExePath()
        if program.mount_namespace == self._our_mounts:
            return ExePath(path=program.path)
        file = None if program.executable is None else proc_files.opened_as(program.path, program.executable)
        if file is None:
            return ExePath(claimed=program.path)
        os.close(file)
        return ExePath(path=program.path)

    def _sha256_at(self, path: str, executable: Executable, uid: int) -> Future[str | None]:
        """Of the file that an ended process executed, if it still lies there, unchanged; nothing else is opened."""
        file = proc_files.opened_as(path, executable)
        if file is None:
            return unhashed()
        try:
            if not can_be_remembered(file):  # it may have been changed since, and nothing would show it
                return unhashed()
            return self._hashes.begin(os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC), uid)
        except OSError:
            return unhashed()
        finally:
            os.close(file)

    def _with_parents(self, owner: Owner, life: Life) -> Owner:
        """Parent and ancestors as they were when the process, the parent and so on started."""
        known = islice(self._history.ancestors(life), ANCESTORS_LIMIT)
        chain = [(parent.pid, self._exe_of_parent(program)) for parent, program in known]
        if not chain and life.parent:
            chain = [(life.parent, ExePath())]
        return Owner(msgspec.structs.replace(owner.process, parent=chained(chain)), owner.sha256)

    def _exe_of_parent(self, program: Program) -> ExePath:
        is_certain = self._history.is_certain(program, program.since_ns)
        return self._exe_of_program(program) if is_certain else ExePath()

    # -- remembered ----------------------------------------------------------------------------------------------------
    def _remembered(self, pid: int) -> _Known | None:
        """What is known of `pid` if that is still the same process and the same program."""
        known = self._known.pop(pid, None)
        if known is None:
            return None
        try:
            is_same = identity_of(os.stat("exe", dir_fd=known.folder)) == known.identity
        except OSError:  # it has ended
            is_same = False
        if not is_same:
            os.close(known.folder)
            return None
        if known.owner.sha256 is not None and (owner := settled(known.owner)) is not known.owner:
            known = replace(known, owner=owner)
        self._known[pid] = known
        return known

    def _keep(self, pid: int, known: _Known) -> None:
        self._known[pid] = known
        if len(self._known) > PROCESSES_LIMIT:
            self._forget(next(iter(self._known)))

    def _forget(self, pid: int) -> None:
        os.close(self._known.pop(pid).folder)

    # -- read ----------------------------------------------------------------------------------------------------------
    def _read(self, pid: int, uid: int) -> _Known | None:
        """The process that has `pid` now; None when there is none."""
        folder = proc_files.opened(pid, self._proc)
        if folder is None:
            return None
        exe = proc_files.exe_opened(folder)
        keep = False
        try:
            if (status := proc_files.status_of(folder)) is None:
                return None
            identity = None if exe is None else _identity(exe)
            owner = self._process(pid, uid, folder, status, exe)
            if identity is None and proc_files.status_of(folder) is None:
                return None  # it ended while it was read
            keep = identity is not None and identity == _identity_of_exe(folder)  # else: right for now, but not to keep
            files = proc_files.files_of(folder) if self._monitor is not None else frozenset()
            known = _Known(folder if keep else NOT_KEPT, identity, status.start_ticks, files, owner)
            if keep:
                self._keep(pid, known)
            return known
        finally:
            if exe is not None:
                os.close(exe)
            if not keep:
                os.close(folder)

    def _process(self, pid: int, uid: int, folder: int, status: proc_files.Status, exe: int | None) -> Owner:
        path = proc_files.path_of(exe) if exe is not None else ExePath()
        cgroup = cgroup_path.path_in(proc_files.cgroup_of(folder) or "")
        names = cgroup_path.names_of(cgroup or "")
        process = Process(
            pid=pid,
            started=rfc3339(self._boot_s + status.start_ticks / proc_files.TICKS_PER_S),
            exe=displayed(path.path),
            claimed_exe=displayed(path.claimed),
            name=proc_files.comm_of(folder),
            parent=self._parents(status.parent),
            unit=displayed(names.unit),
            container=displayed(names.container),
            confidence=_surety(path, cgroup),
            user=self._user(uid),
            uid=uid,
        )
        return settled(Owner(process, None if exe is None else self._sha256(exe, uid)))

    def _sha256(self, exe: int, uid: int) -> Future[str | None]:
        try:
            if (known := self._hashes.known(identity_of(os.fstat(exe)))) is not None:
                return known
            return self._hashes.begin(os.open(f"/proc/self/fd/{exe}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), uid)
        except OSError:
            return unhashed()

    def _parents(self, pid: int) -> ParentProcess | None:
        """The process `pid`, its parent and so on, as they are now."""
        found: list[tuple[int, ExePath]] = []
        while pid and len(found) < ANCESTORS_LIMIT:
            folder = proc_files.opened(pid, self._proc)
            if folder is None:
                found.append((pid, ExePath()))
                break
            try:
                found.append((pid, proc_files.exe_of(folder)))
                status = proc_files.status_of(folder)
            finally:
                os.close(folder)
            pid = status.parent if status is not None else 0
        return chained(found)

    def _user(self, uid: int) -> str:
        known = self._users.get(uid)
        now_s = time.monotonic()
        if known is None or known[0] < now_s:
            known = self._users.keep(uid, (now_s + USER_S, user_name(uid)))
        return known[1]


def _surety(exe: ExePath, cgroup: str | None) -> Confidence:
    """Of a process that has ended, and is not yet reaped, neither can be read."""
    return Confidence.INFERRED if exe == ExePath() or cgroup is None else Confidence.KERNEL


def _agrees(known: _Known, life: Life, at_ns: int) -> bool:
    """What was read is the life that is meant, and the program that it ran then."""
    if known.start_ticks != life.start_ticks:
        return False
    since = life.programs.index(life.program_at(at_ns))
    files = [one.executable for one in life.programs[since:] if one.executable is not None]
    return all((file.device, file.inode) in known.files for file in files)


def _is_life(life: Life, at_ns: int, caller: Caller) -> bool:
    """The monitor and the hook tell of the same process and the same program."""
    told, executable = life.program_at(at_ns).executable, callers.executable_of(caller)
    is_same_file = told is None or (executable is not None and told.inode == executable.inode)
    return life.is_same(callers.start_ticks(caller), caller.start_ns) and is_same_file


def _identity(file: int) -> FileIdentity | None:
    try:
        return identity_of(os.fstat(file))
    except OSError:
        return None


def _identity_of_exe(folder: int) -> FileIdentity | None:
    try:
        return identity_of(os.stat("exe", dir_fd=folder))
    except OSError:
        return None
