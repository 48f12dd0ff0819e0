"""Who had a pid at a given moment, and which program ran in it: told by the monitor, remembered past the end.

    pid ──► lives, newest last ──► programs, newest last
            (start, parent, end)    (since when, path, file, user, cgroup)

A connection names a pid and a time. The life that had begun by then and had not ended is whose it is, and its last
program before that moment is what made it, whatever the process has executed since. Nothing here reads a clock or a
file; times are nanoseconds of CLOCK_MONOTONIC, but starts, which are of CLOCK_BOOTTIME as everywhere in Linux.

After a loss of records nothing that was known before is certain (`is_certain`). Ended lives are kept KEEP_NS, at most
ENDED_LIMIT of them; living ones are as many as there are processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import assert_never

import msgspec

from mitmsec.core.model import Value
from mitmsec_redirect.process_records import Executable, ProcessEnded, ProcessEvent, ProcessExecuted, ProcessStarted

TICK_NS = 10_000_000  # what /proc tells starts in
KEEP_NS = 600 * 10**9
ENDED_LIMIT = 65536
PROGRAMS_LIMIT = 8  # of one life; the oldest go first
ANCESTORS_LIMIT = 16


class Program(Value, frozen=True):
    """What ran in a process from a moment on."""

    since_ns: int
    comm: str
    uid: int
    path: str | None = None  # in `mount_namespace`; None: not known
    mount_namespace: int = 0
    executable: Executable | None = None
    cgroup: int = 0  # id; 0: not known
    is_told: bool = True  # by the kernel as it happened; False: found by a scan


class Life(msgspec.Struct, eq=False):
    """One process, from its start to its end."""

    pid: int
    start_ticks: int
    started_ns: int | None  # exactly, if the kernel told it
    parent: int
    parent_start_ticks: int | None
    since_ns: int  # from when on it is known to have the pid; 0: since its start
    programs: list[Program] = msgspec.field(default_factory=list)
    ended_ns: int | None = None

    def program_at(self, at_ns: int) -> Program:
        """The last that had begun by then; the oldest that is remembered for earlier moments."""
        return next((one for one in reversed(self.programs) if one.since_ns <= at_ns), self.programs[0])

    def is_same(self, start_ticks: int, started_ns: int | None) -> bool:
        if self.started_ns is not None and started_ns is not None:
            return self.started_ns == started_ns
        return self.start_ticks == start_ticks


class Sighting(Value, frozen=True):
    """A process as a scan of /proc found it."""

    pid: int
    start_ticks: int
    parent: int
    program: Program


class ProcessHistory:
    """Lives by pid."""

    def __init__(self) -> None:
        self._lives: dict[int, list[Life]] = {}
        self._ended: deque[Life] = deque()
        self._doubted_until_ns = 0

    def __len__(self) -> int:
        return sum(len(lives) for lives in self._lives.values())

    # -- what is told --------------------------------------------------------------------------------------------------
    def apply(self, event: ProcessEvent) -> None:
        """Events in the order of the stream; one that was told twice changes nothing."""
        match event:
            case ProcessStarted():
                self._start(event)
            case ProcessExecuted():
                life = self._life(event)
                if life.programs[-1].since_ns < event.at_ns or not life.programs[-1].is_told:
                    self._begin(life, _program(event, event.path, event.mount_namespace))
            case ProcessEnded():
                self._end(event)
            case _:
                assert_never(event)

    def scanned(self, began_ns: int, ended_ns: int, sightings: list[Sighting], *, has_lost: bool) -> None:
        """All that lived when a scan began, as they were at some time until it ended.

        Whoever is not among them has ended. After a loss, all that was known before is in doubt.
        """
        if has_lost:
            self._doubted_until_ns = ended_ns
        seen = {sighting.pid: sighting for sighting in sightings}
        for lives in list(self._lives.values()):
            life = lives[-1]
            sighting = seen.get(life.pid)
            is_there = sighting is not None and life.is_same(sighting.start_ticks, None)
            if life.ended_ns is None and not is_there and life.programs[-1].since_ns < began_ns:
                self._close(life, began_ns)
        for sighting in sightings:
            self._see(sighting)

    def _start(self, event: ProcessStarted) -> None:
        if (known := self._newest(event.pid)) is not None:
            if known.is_same(event.started_ns // TICK_NS, event.started_ns):
                return
            if known.ended_ns is None:
                self._close(known, event.at_ns)
        forker = self.at(event.forker, event.at_ns)
        before = forker.program_at(event.at_ns) if forker is not None else None
        life = self._add(event)
        if before is not None and _is_same_file(before, event):
            self._begin(life, _program(event, before.path, before.mount_namespace))
        else:
            self._begin(life, _program(event, None, 0))

    def _see(self, sighting: Sighting) -> None:
        known = self._newest(sighting.pid)
        if known is None or known.ended_ns is not None or not known.is_same(sighting.start_ticks, None):
            known = Life(sighting.pid, sighting.start_ticks, None, sighting.parent, None, since_ns=0)
            self._lives.setdefault(sighting.pid, []).append(known)
            self._begin(known, sighting.program)
        elif self._doubted_until_ns > known.programs[-1].since_ns:
            self._begin(known, sighting.program)

    def _life(self, event: ProcessExecuted) -> Life:
        """The process, which may have started before anybody was told."""
        known = self._newest(event.pid)
        if known is not None and known.is_same(event.started_ns // TICK_NS, event.started_ns):
            known.started_ns = event.started_ns
            return known
        if known is not None and known.ended_ns is None:
            self._close(known, event.at_ns)
        life = self._add(event)
        self._begin(life, _program(event, event.path, event.mount_namespace))
        return life

    def _end(self, event: ProcessEnded) -> None:
        known = self._newest(event.pid)
        if (
            known is not None
            and known.ended_ns is None
            and known.is_same(event.started_ns // TICK_NS, event.started_ns)
        ):
            self._close(known, event.at_ns)

    # -- lives ---------------------------------------------------------------------------------------------------------
    def _newest(self, pid: int) -> Life | None:
        lives = self._lives.get(pid)
        return lives[-1] if lives else None

    def _add(self, event: ProcessStarted | ProcessExecuted) -> Life:
        parent_ticks = event.parent_started_ns // TICK_NS
        life = Life(
            event.pid, event.started_ns // TICK_NS, event.started_ns, event.parent, parent_ticks, since_ns=event.at_ns
        )
        self._lives.setdefault(event.pid, []).append(life)
        return life

    def _begin(self, life: Life, program: Program) -> None:
        life.programs.append(program)
        del life.programs[:-PROGRAMS_LIMIT]

    def _close(self, life: Life, at_ns: int) -> None:
        life.ended_ns = at_ns
        self._ended.append(life)
        while self._ended and (len(self._ended) > ENDED_LIMIT or at_ns - (self._ended[0].ended_ns or 0) > KEEP_NS):
            self._drop(self._ended.popleft())

    def _drop(self, life: Life) -> None:
        lives = self._lives[life.pid]
        lives.remove(life)
        if not lives:
            del self._lives[life.pid]

    # -- what is asked -------------------------------------------------------------------------------------------------
    def at(self, pid: int, at_ns: int) -> Life | None:
        """Who had the pid at that moment."""
        for life in reversed(self._lives.get(pid, ())):
            if life.since_ns <= at_ns:
                return life if life.ended_ns is None or at_ns <= life.ended_ns else None
        return None

    def is_certain(self, program: Program, at_ns: int) -> bool:
        """It ran then: it had begun, and no later program can have been lost."""
        return self._doubted_until_ns <= program.since_ns <= at_ns

    def ancestors(self, life: Life) -> Iterator[tuple[Life, Program]]:
        """Parent, its parent and so on as far as they are known, each with what it ran when the child started."""
        seen = life
        for _ in range(ANCESTORS_LIMIT):
            parent = self._parent_of(seen)
            if parent is None:
                return
            yield parent, parent.program_at(seen.programs[0].since_ns)
            seen = parent

    def _parent_of(self, life: Life) -> Life | None:
        for parent in reversed(self._lives.get(life.parent, ())):
            if parent.start_ticks == life.parent_start_ticks or (
                life.parent_start_ticks is None and parent.start_ticks <= life.start_ticks
            ):
                return parent
        return None


def _program(event: ProcessStarted | ProcessExecuted, path: str | None, mount_namespace: int) -> Program:
    return Program(
        since_ns=event.at_ns,
        comm=event.comm,
        uid=event.uid,
        path=path,
        mount_namespace=mount_namespace,
        executable=event.executable,
        cgroup=event.cgroup,
    )


def _is_same_file(before: Program, event: ProcessStarted) -> bool:
    """A scan knows files by stat(), whose device may be another."""
    if before.executable is None or event.executable is None:
        return False
    mine, told = before.executable, event.executable
    return mine == told or (not before.is_told and (mine.inode, mine.ctime_ns) == (told.inode, told.ctime_ns))
