"""Who a pid is: read from /proc while the process lives, and remembered as long as it is still the same program.

A pid alone names nobody: it is reused, and exec() gives the same pid and start time another program. So the folder
/proc/PID of a process that was read is kept open: through that descriptor the kernel answers about this process or,
once it has ended, not at all, whoever has its pid by then. One stat of `exe` below it is all that a connection of a
remembered process costs; what is remembered holds while that is still the same file. The executable is hashed through
/proc/PID/exe, which is the program that runs even if another file has its name by now (see mitmsec_redirect.hashes).
"""

from __future__ import annotations

import os
import pwd
import time
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mitmsec.core.model import Confidence, ParentProcess, Process
from mitmsec_redirect.hashes import ExecutableHashes, FileIdentity, Remembered, identity_of

PROCESSES_LIMIT = 256  # each holds a descriptor
USERS_LIMIT = 1024
USER_S = 60.0  # how long a user's name is remembered
START_TIME_SLACK_S = 0.05  # start times have a resolution of one clock tick, mostly 0.01 s
DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Owner:
    """The process of a connection. `sha256` is its executable's, still to come or in vain; None: nothing is to come."""

    process: Process
    sha256: Future[str | None] | None = None

    def hashed(self) -> Process:
        """The process with its hash; call once that is done."""
        if self.sha256 is None:
            return self.process
        return msgspec.structs.replace(self.process, sha256=self.sha256.result())


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/stat says."""

    parent: int
    start_ticks: int  # since boot


@dataclass(frozen=True, slots=True)
class _Known:
    """A process that was read."""

    folder: int
    identity: FileIdentity
    started_s: float  # since boot
    owner: Owner


class ProcessTable:
    """Processes by pid. Not thread-safe; nothing here waits for a hash."""

    def __init__(self, proc: Path = Path("/proc"), hashes: ExecutableHashes | None = None) -> None:
        self._proc = str(proc)
        self._hashes = hashes or ExecutableHashes()
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._known: dict[int, _Known] = {}  # least recently used first
        self._users: Remembered[int, tuple[float, str]] = Remembered(USERS_LIMIT)

    def whose(self, pid: int, uid: int, comm: str, connected_ns: int | None = None) -> Owner:
        """The process that the kernel named at connect(), as far as it can still be read.

        Confidence.KERNEL: it was read while it lived. INFERRED: it has ended, or (with `connected_ns`, CLOCK_MONOTONIC)
        another process has its pid by now; then little more than pid, `comm` and the user is known.
        """
        user = self._user(uid)
        known = self._remembered(pid)
        if known is None:
            owner, started_s = self._read(pid, user)
        else:
            owner, started_s = known.owner, known.started_s
        if owner is None or (connected_ns is not None and self._is_later(started_s, connected_ns)):
            return Owner(Process(pid=pid, name=comm or None, user=user, confidence=Confidence.INFERRED))
        if owner.process.user != user:
            return Owner(msgspec.structs.replace(owner.process, user=user), owner.sha256)
        return owner

    def close(self) -> None:
        """Let go of the descriptors."""
        for pid in list(self._known):
            self._forget(pid)

    def _is_later(self, started_s: float, connected_ns: int) -> bool:
        slept_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        return started_s > connected_ns / 1e9 + slept_s + START_TIME_SLACK_S

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
        if known.owner.sha256 is not None and (owner := _settled(known.owner)) is not known.owner:
            known = _Known(known.folder, known.identity, known.started_s, owner)
        self._known[pid] = known
        return known

    def _keep(self, pid: int, known: _Known) -> None:
        self._known[pid] = known
        if len(self._known) > PROCESSES_LIMIT:
            self._forget(next(iter(self._known)))

    def _forget(self, pid: int) -> None:
        os.close(self._known.pop(pid).folder)

    # -- read ----------------------------------------------------------------------------------------------------------
    def _read(self, pid: int, user: str) -> tuple[Owner | None, float]:
        """The process that has `pid` now and when it started; None when there is none."""
        try:
            folder = os.open(f"{self._proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None, 0.0
        keep = False
        try:
            if (status := _status(folder)) is None:
                return None, 0.0
            started_s = status.start_ticks / self._ticks_per_s
            identity, owner = self._process(pid, user, folder, status, started_s)
            if identity is None and _status(folder) is None:
                return None, 0.0  # it ended while it was read
            if identity is not None and identity == _identity(folder):  # else: right for now, but not to be kept
                keep = True
                self._keep(pid, _Known(folder, identity, started_s, owner))
            return owner, started_s
        finally:
            if not keep:
                os.close(folder)

    def _process(
        self, pid: int, user: str, folder: int, status: Status, started_s: float
    ) -> tuple[FileIdentity | None, Owner]:
        identity = _identity(folder)
        exe = _exe(folder)
        process = Process(
            pid=pid,
            started=rfc3339(self._boot_s + started_s),
            exe=exe,
            name=_comm(folder),
            parent=ParentProcess(pid=status.parent, exe=self._exe_of(status.parent)) if status.parent else None,
            confidence=Confidence.KERNEL if exe is not None else Confidence.INFERRED,  # ended, not yet reaped
            user=user,
        )
        return identity, _settled(Owner(process, self._sha256(folder, identity)))

    def _sha256(self, folder: int, identity: FileIdentity | None) -> Future[str | None] | None:
        if identity is None:
            return None
        if (known := self._hashes.known(identity)) is not None:
            return known
        try:
            return self._hashes.begin(os.open("exe", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder))
        except OSError:
            return _unhashed()

    def _exe_of(self, pid: int) -> str | None:
        try:
            folder = os.open(f"{self._proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return _exe(folder)
        finally:
            os.close(folder)

    def _user(self, uid: int) -> str:
        known = self._users.get(uid)
        now_s = time.monotonic()
        if known is None or known[0] < now_s:
            known = self._users.keep(uid, (now_s + USER_S, user_name(uid)))
        return known[1]


def _settled(owner: Owner) -> Owner:
    """`owner` without the Future, if that has brought a hash."""
    if owner.sha256 is None or not owner.sha256.done() or owner.sha256.result() is None:
        return owner
    return Owner(owner.hashed())


def _unhashed() -> Future[str | None]:
    result: Future[str | None] = Future()
    result.set_result(None)
    return result


def _status(folder: int) -> Status | None:
    """proc_pid_stat(5): the second field is in parentheses and may itself hold any character."""
    try:
        fields = _content(folder, "stat").rpartition(b")")[2].split()
        return Status(parent=int(fields[1]), start_ticks=int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def _comm(folder: int) -> str | None:
    try:
        return _content(folder, "comm").removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return None


def _content(folder: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _exe(folder: int) -> str | None:
    """The path that the executable had at exec(); a deleted file's path without the kernel's remark."""
    try:
        path = os.readlink("exe", dir_fd=folder)
    except OSError:
        return None
    return path if not path.endswith(DELETED) or _is_same_file(folder, path) else path.removesuffix(DELETED)


def _identity(folder: int) -> FileIdentity | None:
    try:
        return identity_of(os.stat("exe", dir_fd=folder))
    except OSError:
        return None


def _is_same_file(folder: int, path: str) -> bool:
    try:
        return os.path.samestat(os.stat("exe", dir_fd=folder), os.stat(path))
    except OSError:
        return False


def user_name(uid: int) -> str:
    """The user's name, or the number as text where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def rfc3339(unix_s: float) -> str:
    """UTC, to the hundredth of a second, which is what the kernel knows about a start."""
    whole = datetime.fromtimestamp(unix_s, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{whole.microsecond // 10_000:02d}Z"
