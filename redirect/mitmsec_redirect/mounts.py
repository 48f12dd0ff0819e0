"""What is mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mitmsec.core.model import Value

MOUNTINFO = Path("/proc/self/mountinfo")


class Mount(Value, frozen=True):
    """One mount: its file system type, where it is, and which folder of that file system is seen there."""

    kind: str
    point: Path
    root: str


def mounts(text: str | None = None) -> Iterator[Mount]:
    """All mounts, oldest first; `text` stands in for the kernel's table. Bad lines do not count."""
    for line in (MOUNTINFO.read_text() if text is None else text).splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")[0]
        if separator and len(fields) >= 5 and kind:
            yield Mount(kind=kind, point=Path(_unescaped(fields[4])), root=_unescaped(fields[3]))


def _unescaped(text: str) -> str:
    """Space, tab, newline and backslash stand there as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
