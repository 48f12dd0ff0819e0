"""Whose a listener is that a selected program was started with: perhaps still an ancestor's that nobody has selected.

    elder (not selected) ── listen() ──┐ both have it open, and may accept from it
      └─► child (selected) ────────────┘

Who is going to accept a connection, nobody can know before. So what is decided for the child would fall on the elder,
of which nobody has asked anything: its listener is its own for as long as it has it open. Managers open listeners for
others: what systemd has open is whosever it starts.

How many ancestors a process has, and how much they have open, is its user's choice: so there is a bound to what is
looked at, and beyond it nobody knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator

from mitmsec_redirect.open_listeners import sockets_of
from mitmsec_redirect.proc_files import status_of_pid

MANAGER_FILE = "systemd"  # of a user, too
PROCESS_COST = 8  # to look at a process takes as long as at so many descriptors


class Elders:
    """As they are at one moment: to be made anew for each question of whose some listeners are."""

    def __init__(self, selected: Callable[[], Iterable[int]], manager: int, most: int = sys.maxsize) -> None:
        """`selected` names whose listeners are ours to lead; it is asked once at most.

        `most` descriptors are looked at in all, ten to forty microseconds each.
        """
        self._selected, self._manager, self._most = selected, manager, most
        self._ours: frozenset[int] | None = None
        self._of: dict[int, tuple[int, ...]] = {}  # by pid
        self._open: dict[int, frozenset[int]] = {}

    def have(self, inode: int, pid: int) -> bool | None:
        """An ancestor of the process `pid` that is not selected has this socket open. None: not all were looked at."""
        if pid not in self._of:
            self._of[pid] = tuple(elder for elder in self._ancestors(pid) if self._is_stranger(elder))
        if any(inode in self._sockets(elder) for elder in self._of[pid]):
            return True
        return False if self._most > 0 else None

    def _ancestors(self, pid: int) -> Iterator[int]:
        """The nearest first. Of a process whose parent has ended, the next is whoever has adopted it."""
        while self._most > 0 and (status := status_of_pid(pid)) is not None and status.parent:
            self._most -= PROCESS_COST
            pid = status.parent
            yield pid

    def _is_stranger(self, pid: int) -> bool:
        if self._ours is None:
            self._ours = frozenset(self._selected())
        return pid not in self._ours and pid != self._manager and not _is_manager(pid)

    def _sockets(self, pid: int) -> frozenset[int]:
        if pid not in self._open and self._most > 0:
            self._open[pid], looked_at = sockets_of(pid)
            self._most -= looked_at
        return self._open.get(pid, frozenset())


def _is_manager(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")) == MANAGER_FILE
    except OSError:  # it has ended
        return False
