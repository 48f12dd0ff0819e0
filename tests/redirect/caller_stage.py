"""Processes as the kernel would tell of them, and file systems for their executables."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.model import Caller
from mitmsec_redirect import proc_files
from mitmsec_redirect.process_history import TICK_NS


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


@contextlib.contextmanager
def mounted(kind: str, place: Path, options: str = "rw") -> Iterator[None]:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
