"""Which programs run: looked up in /proc again and again, for kernels that cannot tell of each as it starts.

A program is a process and the file that it executes: exec() makes another one of the same process. What lives shorter
than the time between two looks is never seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mitmsec_redirect.hashes import FileIdentity, identity_of


@dataclass(frozen=True, slots=True)
class Seen:
    """A process that runs a program."""

    uid: int
    start_ticks: int  # since boot: pids are used again
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class Changes:
    """Since the last look."""

    begun: Mapping[int, Seen]  # by pid: new processes, and those that execute something else
    ended: frozenset[int]


class RunningPrograms:
    """What ran at the last look. Kernel threads run no program. Not thread-safe."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[int, Seen] = {}

    def look(self) -> Changes:
        """What has begun and what has ended; some 20 µs for each process of the machine."""
        now = dict(self._now(int(name) for name in os.listdir(self._proc) if name.isdecimal()))
        before, self._seen = self._seen, now
        begun = {pid: seen for pid, seen in now.items() if before.get(pid) != seen}
        return Changes(begun=begun, ended=frozenset(before.keys() - now.keys()))

    def _now(self, pids: Iterable[int]) -> Iterable[tuple[int, Seen]]:
        for pid in pids:
            try:
                identity = identity_of(os.stat(f"{self._proc}/{pid}/exe"))
                uid = os.stat(f"{self._proc}/{pid}").st_uid
                fields = Path(f"{self._proc}/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:  # it has ended, or is the kernel's
                continue
            yield pid, Seen(uid=uid, start_ticks=int(fields[19]), identity=identity)
