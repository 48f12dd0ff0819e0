"""Who a pid is: read from /proc while the process lives, and remembered as long as it is still the same program.

A pid alone names nobody: it is reused, and exec() gives the same pid and start time another program. So what is
remembered is keyed by pid and start time, and holds only while /proc/PID/exe is still the same file; hashes are
remembered by that file's identity (device, inode, size, times) and are read through /proc/PID/exe, which is the program
that runs even if another file has its name by now.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mitmsec.core.model import Confidence, ParentProcess, Process

PROCESSES_LIMIT = 4096
HASH_LIMIT_BYTES = 256 << 20  # a larger executable has no sha256 on record
HASHES_LIMIT = 1024
START_TIME_SLACK_S = 0.05  # start times have a resolution of one clock tick, mostly 0.01 s
DELETED = " (deleted)"

type FileIdentity = tuple[int, int, int, int, int]


class Remembered[K, V](OrderedDict[K, V]):
    """At most `limit` values; those used least recently are dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def find(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def keep(self, key: K, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)
        return value


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/stat says."""

    parent: int
    start_ticks: int  # since boot


class ProcessTable:
    """Processes by pid. Not thread-safe; hashing a large executable, the first time, takes tenths of a second."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._known: Remembered[tuple[int, int], tuple[FileIdentity | None, Process]] = Remembered(PROCESSES_LIMIT)
        self._hashes: Remembered[FileIdentity, str] = Remembered(HASHES_LIMIT)

    def whose(self, pid: int, uid: int, comm: str, connected_ns: int | None = None) -> Process:
        """The process that the kernel named at connect(), as far as it can still be read.

        Confidence.KERNEL: it was read while it lived. INFERRED: it has gone, or (with `connected_ns`, CLOCK_MONOTONIC)
        another process has its pid by now; then only pid, `comm` and the user are known.
        """
        gone = Process(pid=pid, name=comm or None, user=user_name(uid), confidence=Confidence.INFERRED)
        before = self._status(pid)
        if before is None or (connected_ns is not None and self._started_after(before, connected_ns)):
            return gone
        process = self._process(pid, before)
        after = self._status(pid)
        if after is None and process.exe is None:
            return gone  # it ended while it was read
        if after is not None and after.start_ticks != before.start_ticks:
            return gone  # and somebody else has its pid
        return msgspec.structs.replace(process, user=user_name(uid))

    def _started_after(self, status: Status, connected_ns: int) -> bool:
        slept_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        return status.start_ticks / self._ticks_per_s > connected_ns / 1e9 + slept_s + START_TIME_SLACK_S

    def _process(self, pid: int, status: Status) -> Process:
        identity = self._identity(pid)
        known = self._known.find((pid, status.start_ticks))
        if known is not None and known[0] == identity:
            return known[1]
        process = Process(
            pid=pid,
            started=rfc3339(self._boot_s + status.start_ticks / self._ticks_per_s),
            exe=self._exe(pid),
            name=self._comm(pid),
            sha256=self._sha256(pid, identity),
            parent=ParentProcess(pid=status.parent, exe=self._exe(status.parent)) if status.parent else None,
            confidence=Confidence.KERNEL,
        )
        if self._identity(pid) == identity:  # else it called exec() meanwhile: right for now, but not to be kept
            self._known.keep((pid, status.start_ticks), (identity, process))
        return process

    def _status(self, pid: int) -> Status | None:
        """proc_pid_stat(5): the second field is in parentheses and may itself hold any character."""
        try:
            fields = (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
            return Status(parent=int(fields[1]), start_ticks=int(fields[19]))
        except (OSError, IndexError, ValueError):
            return None

    def _comm(self, pid: int) -> str | None:
        try:
            return (self._proc / str(pid) / "comm").read_bytes().removesuffix(b"\n").decode(errors="replace")
        except OSError:
            return None

    def _exe(self, pid: int) -> str | None:
        """The path that the executable had at exec(); a deleted file's path without the kernel's remark."""
        link = self._proc / str(pid) / "exe"
        try:
            path = os.readlink(link)
        except OSError:
            return None
        return path if not path.endswith(DELETED) or _is_same_file(link, path) else path.removesuffix(DELETED)

    def _identity(self, pid: int) -> FileIdentity | None:
        try:
            return _identity_of(os.stat(self._proc / str(pid) / "exe"))
        except OSError:
            return None

    def _sha256(self, pid: int, identity: FileIdentity | None) -> str | None:
        if identity is None:
            return None
        if (known := self._hashes.find(identity)) is not None:
            return known
        if identity[2] > HASH_LIMIT_BYTES:  # a sparse file of terabytes must not hold up everybody else's answer
            return None
        try:
            with open(self._proc / str(pid) / "exe", "rb") as file:
                opened = _identity_of(os.fstat(file.fileno()))
                return self._hashes.keep(opened, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:
            return None


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


def _identity_of(status: os.stat_result) -> FileIdentity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_same_file(one: Path, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
