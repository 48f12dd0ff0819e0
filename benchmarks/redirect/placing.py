"""Which core a gate runs on: the cores of a virtual machine are not equally fast, and it stays where it began.

So what is measured of its single thread is measured on each core, of all rows alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GATES = frozenset({"gate", "bare"})  # `python -m mitmsec.service gate`, `python -m benchmarks.redirect.explicit bare`


def cores() -> tuple[int, ...]:
    """Those that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


def gates(pids: Iterable[int]) -> list[int]:
    """The gates among these processes."""
    return [pid for pid in pids if GATES & set(_words(pid))]


@contextmanager
def held(pids: Iterable[int], core: int) -> Iterator[None]:
    """The gates among these processes run there, and nowhere else; afterwards wherever this process may."""
    found = gates(pids)
    try:
        for pid in found:
            os.sched_setaffinity(pid, {core})
        yield
    finally:
        for pid in found:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(pid, os.sched_getaffinity(0))


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
