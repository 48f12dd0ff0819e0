"""Who the calling process is, by the kernel's account, for the label that it writes. Standard library only."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.attribution.labels import Label, line

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BOOT_S = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)  # once: all labels of a run share it


def label(flow: int, pattern: str, exe: str | None = None) -> Label:
    """The caller's own label; `exe` is what it will have executed by the time it calls, where that is not yet so."""
    stat = Path("/proc/self/stat").read_bytes()
    ticks = int(stat.rpartition(b")")[2].split()[19])
    executable = exe or os.readlink("/proc/self/exe")
    return Label(flow, pattern, os.getpid(), round(_BOOT_S + ticks / _TICKS_PER_S, 3), executable)


class Book:
    """A file to which any number of processes append whole lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def sign(self, flow: int, pattern: str, exe: str | None = None) -> None:
        """The calling process says that this flow is its own."""
        os.write(self._fd, line(label(flow, pattern, exe)))
