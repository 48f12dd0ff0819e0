"""Processes as the kernel would tell of them, and file systems for their executables."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.model import Caller
from mitmsec_redirect import path_records, proc_files
from mitmsec_redirect.bpf import Map
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.path_records import PathState
from mitmsec_redirect.process_history import TICK_NS
from mitmsec_redirect.process_records import EXECUTABLE, Executable


def caller_of(pid: int) -> Caller:
    """As the kernel would tell it now, if it had no better clock than /proc."""
    folder = proc_files.opened(pid)
    assert folder is not None
    try:
        status, executable = proc_files.status_of(folder), proc_files.executable_of(folder)
    finally:
        os.close(folder)
    assert status is not None
    assert executable is not None
    file = {"device": executable.device, "inode": executable.inode, "ctime_ns": executable.ctime_ns}
    return Caller(status.start_ticks * TICK_NS + 7, status.parent, 0, **file)


def mark(noted: ExecutablePaths, executable: Executable, path: str, *, rooted: bool = True) -> None:
    """As if a hook had noted that."""
    names = b"".join(os.fsencode(name) + b"\0" for name in reversed(path[1:].split("/")))
    state = PathState.DONE | (PathState.ROOTED if rooted else PathState(0))
    value = struct.pack("=II", state, len(names)) + names
    elements = Map(noted.maps().paths, EXECUTABLE.size, path_records.VALUE_BYTES)
    elements.update(executable.key(), value.ljust(path_records.VALUE_BYTES, b"\0"))


@contextlib.contextmanager
def mounted(kind: str, place: Path, options: str = "rw") -> Iterator[None]:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
