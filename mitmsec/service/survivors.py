"""Who still needs the folder of a run that has ended: its roots stand in the environment of every child that lives on.

    the run ends ── note(folder, pids) ──► next start, `clean` ── living(folder)? ──► stays, or goes

Two ways to find them, since each misses some. The processes that lived when the run ended are noted by pid and start.
Their later children are found by an environment that names the folder; programs that write over theirs are not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE = "survivors"
PROC = Path("/proc")


def note(folder: Path, pids: Iterable[int]) -> None:
    """Keep in `folder` which processes live on. Where it cannot be written, their environment must do."""
    found = [(pid, start) for pid in pids if (start := _start(pid)) is not None]
    with contextlib.suppress(OSError):
        (folder / FILE).write_text("".join(f"{pid} {start}\n" for pid, start in found))


def living(folder: Path) -> list[int]:
    """The processes that may still read in the run's `folder`."""
    return sorted({*_noted(folder), *_named_by(folder)})


def _noted(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in (folder / FILE).read_text().splitlines():
            pid, _, start = line.partition(" ")
            if pid.isdecimal() and _start(int(pid)) == start:
                yield int(pid)


def _named_by(folder: Path) -> Iterator[int]:
    """A run's name is random: what holds it below a folder `run` has it from us, however the path begins."""
    name = os.fsencode(f"/{folder.parent.name}/{folder.name}/")
    for entry in PROC.iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if entry.name.isdecimal() and name in (entry / "environ").read_bytes():
                yield int(entry.name)


def _start(pid: int) -> str | None:
    """When it started, in the kernel's ticks since boot: with the pid it names one process. None: it has ended."""
    with contextlib.suppress(OSError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    return None
