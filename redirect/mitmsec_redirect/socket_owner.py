"""Who has a socket, where nobody wrote it down at connect(): looked up afterwards, and honest about what that is worth.

    local, remote ── sock_diag ──► inode, uid ── /proc/PID/fd of the cgroup's processes ──► pid

    found with one process                                     table
    with several (inherited, passed on), or time ran out       inferred: the oldest of those found
    with none: closed, ended, or moved out of the cgroup       unknown; the socket's uid, if sock_diag had one

A scan takes at most SCAN_S of computing time (waiting for a busy machine does not count), and begins with the process
that was found last. It is done by the supervisor: it needs the processes' descriptors, which the gate cannot see.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from mitmsec.core.model import Confidence, Endpoint, Process, Transport
from mitmsec_redirect.backend import SocketOwner
from mitmsec_redirect.owner import Owner, user_name, weaker
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.sockdiag import CookieLookup, FoundSocket

SOURCE = "sock_diag"
SCAN_S = 0.005
LOOKED_AT_ONCE = 64  # descriptors between two looks at the clock


class SocketOwners:
    """Asks about sockets of the network namespace that it was made in, held by the processes that `pids` names."""

    def __init__(
        self, pids: Callable[[], Sequence[int]], *, proc: Path = Path("/proc"), clock: Callable[[], float] | None = None
    ) -> None:
        self._pids, self._proc = pids, str(proc)
        self._clock = clock or time.thread_time
        self._sockets = CookieLookup()
        self._last = 0

    def close(self) -> None:
        """Idempotent."""
        self._sockets.close()

    def owner(self, local: Endpoint, remote: Endpoint, transport: Transport = Transport.TCP) -> SocketOwner:
        """Who has the socket with these ends. Raises OSError when the kernel cannot be asked."""
        found = self.found(local, remote, transport)
        return SocketOwner(SOURCE, Confidence.UNKNOWN) if found is None else self.holders([found])[found.cookie]

    def found(self, local: Endpoint, remote: Endpoint, transport: Transport, interface: int = 0) -> FoundSocket | None:
        """The socket with these ends. Raises OSError when the kernel cannot be asked."""
        return self._sockets.find(local, remote, transport, interface)

    def holders(self, sockets: Collection[FoundSocket], scan_s: float = SCAN_S) -> dict[int, SocketOwner]:
        """Who has each of them, by its cookie: one scan for all, which takes at most `scan_s`."""
        wanted = {f"socket:[{one.inode}]": one.inode for one in sockets if one.inode}
        held: dict[int, list[tuple[int, int]]] = {}
        complete = self._scan(wanted, held, self._clock() + scan_s) if wanted else True
        return {one.cookie: self._told(one, held.get(one.inode, []), complete=complete) for one in sockets}

    def _told(self, found: FoundSocket, holders: list[tuple[int, int]], *, complete: bool) -> SocketOwner:
        if not holders:
            return SocketOwner(SOURCE, Confidence.UNKNOWN, uid=found.uid)
        started, pid = min(holders)
        self._last = pid
        is_sure = complete and len(holders) == 1
        return SocketOwner(
            SOURCE,
            Confidence.TABLE if is_sure else Confidence.INFERRED,
            pid=pid,
            uid=found.uid,
            comm=comm_of(pid, self._proc),
            started_ticks=started,
        )

    def _scan(self, wanted: Mapping[str, int], held: dict[int, list[tuple[int, int]]], deadline: float) -> bool:
        """Into `held`: start and pid of each process that has one of them. Whether all processes were looked at."""
        try:
            for pid in sorted(self._pids(), key=lambda pid: pid != self._last):
                for inode in self._of(pid, wanted, deadline):
                    if (started := started_ticks(pid, self._proc)) is not None:
                        held.setdefault(inode, []).append((started, pid))
        except TimeoutError:
            return False
        return True

    def _of(self, pid: int, wanted: Mapping[str, int], deadline: float) -> Iterator[int]:
        """Which of them the process has, each once. Raises TimeoutError."""
        seen: set[int] = set()
        for number, target in enumerate(self._descriptors(pid)):
            if number % LOOKED_AT_ONCE == 0 and self._clock() > deadline:
                raise TimeoutError
            inode = wanted.get(target)
            if inode is not None and inode not in seen:
                seen.add(inode)
                yield inode
            if len(seen) == len(wanted):
                return

    def _descriptors(self, pid: int) -> Iterator[str]:
        with contextlib.suppress(OSError), os.scandir(f"{self._proc}/{pid}/fd") as entries:  # it may have ended
            for entry in entries:
                with contextlib.suppress(OSError):  # closed meanwhile
                    yield os.readlink(entry.path)


def attributed(owner: SocketOwner, processes: ProcessTable, at_ns: int | None = None) -> Owner:
    """The process that `owner` names, as far as it can still be read, and never surer than `owner` is.

    `at_ns` (CLOCK_MONOTONIC) is when it connected, where that is known.
    """
    user = None if owner.uid is None else user_name(owner.uid)
    if owner.confidence is Confidence.UNKNOWN or owner.uid is None:
        return Owner(Process(pid=0, user=user, uid=owner.uid, source=owner.source))
    read = processes.whose(owner.pid, owner.uid, owner.comm, at_ns)
    if owner.started_ticks and started_ticks(owner.pid) != owner.started_ticks:  # it has ended; who was read then?
        confidence = Confidence.INFERRED
        who = Process(pid=owner.pid, name=owner.comm or None, user=user, uid=owner.uid)
        return Owner(msgspec.structs.replace(who, source=owner.source, confidence=confidence))
    confidence = weaker(owner.confidence, read.process.confidence)
    process = msgspec.structs.replace(read.process, source=owner.source, confidence=confidence)
    return Owner(process, read.sha256)


def started_ticks(pid: int, proc: str = "/proc") -> int | None:
    """When the process started, in clock ticks since boot: with its pid, its identity. None: there is none."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def comm_of(pid: int, proc: str = "/proc") -> str:
    """The process's name; empty when it has ended."""
    try:
        return Path(proc, str(pid), "comm").read_bytes().removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return ""
