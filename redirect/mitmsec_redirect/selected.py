"""What the connect hook asks under a standing selection: verdicts by process, and the cgroups of runs.

A run has a hook of its own on its cgroup; what is in it is diverted there, and not a second time here.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.steps import Selection
from mitmsec_redirect.verdicts import PROCESS_KEY, VERDICT, Verdict

PROCESSES_LIMIT = 65536
RUNS_LIMIT = 1024
_CGROUP = struct.Struct("=Q")
_PRESENT = struct.pack("=I", 1)


class SelectedProcesses:
    """Verdicts by pid, in the first pid namespace. Not thread-safe."""

    def __init__(self, limit: int = PROCESSES_LIMIT) -> None:
        self._map = Map.create(MapKind.HASH, PROCESS_KEY.size, VERDICT.size, limit, "ms_selected")
        self._runs = Map.create(MapKind.HASH, _CGROUP.size, len(_PRESENT), RUNS_LIMIT, "ms_runs")

    def selection(self, *, everything: bool) -> Selection:
        """For `ConnectHook.open`."""
        return Selection(self._map.fd, self._runs.fd, everything=everything)

    def leave_out(self, cgroup: Path) -> int:
        """What is in `cgroup`, directly below the cgroup2 root, is diverted by a hook of its own.

        The cgroup's number, for `take_in`. Raises OSError.
        """
        number = os.stat(cgroup).st_ino  # a cgroup's number is that of its folder
        self._runs.update(_CGROUP.pack(number), _PRESENT)
        return number

    def take_in(self, cgroup: int) -> None:
        """It is not any more."""
        self._runs.delete(_CGROUP.pack(cgroup))

    def say(self, pid: int, verdict: Verdict) -> bool:
        """`verdict` holds for `pid` from its next connect() on. False: there is no room."""
        try:
            self._map.update(PROCESS_KEY.pack(pid), VERDICT.pack(verdict))
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM):
                return False
            raise
        return True

    def said(self, pid: int) -> Verdict | None:
        value = self._map.lookup(PROCESS_KEY.pack(pid))
        return None if value is None else Verdict(VERDICT.unpack(value)[0])

    def withdraw(self, pid: int) -> None:
        self._map.delete(PROCESS_KEY.pack(pid))

    def pids(self) -> dict[int, Verdict]:
        """All that is said now."""
        found = {PROCESS_KEY.unpack(key)[0] for key in self._map.keys()}  # noqa: SIM118 - not a dictionary
        return {pid: verdict for pid in sorted(found) if (verdict := self.said(pid)) is not None}

    def close(self) -> None:
        self._map.close()
        self._runs.close()
