"""What is known of a process when the kernel has said at connect() which one it was (`mitmsec.core.model.Caller`).

    Caller: start, file ──┬─ /proc/PID has that start, and runs that file ──► read, and remembered for this caller
                          ├─ it was read before, for an earlier connection ─► remembered, whatever it is by now
                          └─ neither, but where the file lies is known ─────► that path, if the file still lies there
                             (read of another process, or noted by a hook)

A start in /proc has a resolution of one clock tick, a file is exact: who has the same pid, in the same tick, is taken
for the caller only if it runs the same program.
"""

from __future__ import annotations

import os

from mitmsec.core.model import Caller
from mitmsec_redirect import proc_files
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.hashes import Remembered
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.process_records import Executable

CALLERS_LIMIT = 1024
FILES_LIMIT = 4096


def executable_of(caller: Caller) -> Executable | None:
    """The file that it ran; None for a thread of the kernel."""
    return Executable(caller.device, caller.inode, caller.ctime_ns) if caller.inode else None


def start_ticks(caller: Caller) -> int:
    """Its start as /proc tells it."""
    return caller.start_ns // TICK_NS


def runs_still(folder: int, caller: Caller, started: int | None = None) -> bool:
    """The process behind an open /proc/PID is the caller, and has not executed anything else.

    `started`: its start in ticks, where that has been read of this very folder; it never changes.
    """
    if started is None:
        status = proc_files.status_of(folder)
        started = None if status is None else status.start_ticks
    executable = executable_of(caller)
    if started != start_ticks(caller) or executable is None:
        return False
    file = proc_files.exe_opened(folder)
    if file is None:
        return False
    try:
        return proc_files.is_executable(file, executable, folder)
    finally:
        os.close(file)


class Callers[Known]:
    """What was read of callers while they ran, and where their executables lie."""

    def __init__(self, told: ExecutablePaths | None = None) -> None:
        """`told` is what the hooks noted."""
        self._told = told
        self._known: Remembered[tuple[int, int, Executable | None], Known] = Remembered(CALLERS_LIMIT)
        self._paths: Remembered[Executable, str] = Remembered(FILES_LIMIT)

    def keep(self, pid: int, caller: Caller, known: Known, path: str | None) -> None:
        """Only what was read while this very program ran. `path` is true on this machine."""
        executable = executable_of(caller)
        self._known.keep((pid, caller.start_ns, executable), known)
        if executable is not None and path is not None:
            self._paths.keep(executable, path)

    def find(self, pid: int, caller: Caller) -> Known | None:
        """What was kept of this program of this process."""
        return self._known.find((pid, caller.start_ns, executable_of(caller)))

    def path_of(self, caller: Caller) -> str | None:
        """Where its executable lies, if that is still true, and it has no other name."""
        executable = executable_of(caller)
        if executable is None:
            return None
        read = self._paths.find(executable)
        if read is not None and _lies_at(read, executable):
            return read
        if self._told is None:
            return None
        told = self._told.find(executable)
        if told is not None and _lies_at(told, executable):
            return self._paths.keep(executable, told)
        self._told.forget(executable)  # also one that led nowhere: it was met first by a way that only its caller had
        return None


def _lies_at(path: str, executable: Executable) -> bool:
    """Here, and under no other name."""
    file = proc_files.opened_as(path, executable)
    if file is None:
        return False
    try:
        return os.fstat(file).st_nlink == 1
    finally:
        os.close(file)
