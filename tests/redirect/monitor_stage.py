"""A monitor for a test, what it has told so far, and ways to start processes that the standard library lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mitmsec_redirect.monitor import Monitor, Scanned
from mitmsec_redirect.process_records import ProcessEnded, ProcessEvent, ProcessExecuted, ProcessStarted

SYS_CLONE, SYS_CLONE3 = (56, 435) if os.uname().machine == "x86_64" else (220, 435)
CLONE_PARENT = 0x8000
DEADLINE_S = 20


class Stage:
    """Collects events; a process is known by its pid, as long as that is not used twice within a test."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.events: list[ProcessEvent | Scanned] = []
        self.drain()

    def drain(self) -> None:
        self.events += self.monitor.drain()

    def of(self, pid: int) -> list[ProcessEvent]:
        self.drain()
        return [event for event in self.events if not isinstance(event, Scanned) and event.pid == pid]

    def executed(self, pid: int) -> list[ProcessExecuted]:
        return [event for event in self.of(pid) if isinstance(event, ProcessExecuted)]

    def started(self, pid: int) -> ProcessStarted:
        (only,) = (event for event in self.of(pid) if isinstance(event, ProcessStarted))
        return only

    def started_again(self, pid: int) -> ProcessStarted:
        """The newest start of a pid that was used before."""
        return [event for event in self.of(pid) if isinstance(event, ProcessStarted)][-1]

    def events_of_forker(self, pid: int) -> list[ProcessStarted]:
        """The forks that `pid` called."""
        self.drain()
        return [event for event in self.events if isinstance(event, ProcessStarted) and event.forker == pid]

    def kinds(self, pid: int) -> str:
        """What happened to `pid`, a letter each: started, executed, ended."""
        letters = {ProcessStarted: "s", ProcessExecuted: "x", ProcessEnded: "e"}
        return "".join(letters[type(event)] for event in self.of(pid))

    def until(self, holds: Callable[[], bool]) -> None:
        """Drain until it does."""
        ends = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < ends, "did not happen"
            time.sleep(0.002)


def spawn(*arguments: str | Path, **options: int) -> int:
    """posix_spawn, by vfork."""
    return os.posix_spawn(arguments[0], list(arguments), os.environ, **options)


def run(*arguments: str | Path) -> int:
    """Its pid, after it has ended well."""
    pid = spawn(*arguments)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pid


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def forked(child: Callable[[], object]) -> int:
    """A child that does this and ends, without exec()."""
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(0)
    return pid


CLONES = f"""
import ctypes, os, struct, sys
wanted = ctypes.c_int32(int(sys.argv[1]))
fields = struct.pack("=10Q", {CLONE_PARENT}, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(wanted), 1)
got = ctypes.PyDLL(None, use_errno=True).syscall({SYS_CLONE3}, ctypes.create_string_buffer(fields, 80), 80)
if got == 0:
    os.execv(sys.argv[2], sys.argv[2:])
if got < 0:
    raise OSError(ctypes.get_errno(), "clone3")
"""


def with_pid(pid: int, arguments: Sequence[str]) -> int:
    """A child that has this very pid, which must be free (clone3(2), set_tid and CLONE_PARENT; Linux 5.5).

    Who clones is a process of one thread: between clone and exec, a child of many threads may wait for ever for a lock
    that one of the others held.
    """
    subprocess.run([sys.executable, "-c", CLONES, str(pid), *arguments], check=True)
    return pid
