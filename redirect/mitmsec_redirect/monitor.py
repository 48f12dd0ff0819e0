"""The process monitor: who starts, executes and ends, from the kernel as it happens, and who is selected.

    Monitor.open ── attach ──► ring buffer ──► drain() ──► events, the oldest first
                                                  └──► Scanned: all that live now, read from /proc

The programs are attached before /proc is read. So whoever is missing in the scan has ended, or its start is in the
stream; whoever is in both is told twice as the same (pid and start), and what follows in later drains replays over the
scan to the same end. After a loss (the ring was full, because nobody drained for a while) all is read again: what was
known of processes until then is in doubt, and `Scanned.lost` says how much is missing.

Memory is bounded by the ring and the maps, whatever starts how many children. Needs root; Linux 5.12.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from mitmsec.core.model import Value
from mitmsec_redirect import bpf, process_programs
from mitmsec_redirect import process_records as records
from mitmsec_redirect.bpf import EbpfUnavailable, Map, MapKind, RunCount
from mitmsec_redirect.btf import Btf, MalformedBtf, NoSuchMember
from mitmsec_redirect.proc_files import TICKS_PER_S, Found, living, opened, status_of
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.process_programs import Maps
from mitmsec_redirect.process_records import Count, Executable, ProcessEvent, parse_process
from mitmsec_redirect.ringbuffer import RingBuffer
from mitmsec_redirect.verdicts import ENTRY, PID, Verdict, entry

BTF_FILE = Path("/sys/kernel/btf/vmlinux")
RING_BYTES = 4 << 20  # over a second of a program that starts 5,000 children a second
SELECTED_LIMIT = 65536  # processes that live and are selected or undecided
EXECUTABLES_LIMIT = 16384

_VERDICT = struct.Struct("=I")
_COUNT = struct.Struct("=Q")
_LOST = {"fork": Count.LOST_STARTED, "exec": Count.LOST_EXECUTED, "exit": Count.LOST_ENDED}


class Scanned(Value, frozen=True):
    """All processes that lived when the scan began; whoever ended while it went on may be missing.

    Times are of CLOCK_MONOTONIC.
    """

    began_ns: int
    ended_ns: int
    found: tuple[Found, ...]
    lost: int  # records since the last scan that will never be told


class Monitor:
    """The programs, attached to the machine's tracepoints. Made by `open`; not thread-safe, no thread of its own."""

    def __init__(self, maps: Mapping[str, Map], ring: RingBuffer, programs: Mapping[str, int], exchange: int) -> None:
        self._maps = maps
        self._ring = ring
        self._programs = programs
        self._exchange = exchange
        self._links: Mapping[str, int] = {}
        self._held = ExitStack()
        self._told_lost = 0
        self._is_scanned = False

    @classmethod
    def open(
        cls,
        *,
        ring_bytes: int = RING_BYTES,
        selected_limit: int = SELECTED_LIMIT,
        executables_limit: int = EXECUTABLES_LIMIT,
    ) -> Monitor:
        """Attach. From now on every process is told of, the earlier ones by the first `drain`.

        `ring_bytes` is a power of two, at least a page. Raises EbpfUnavailable, ProgramRejected, OSError, with nothing
        left behind.
        """
        types = _kernel_types()
        with ExitStack() as held:
            maps: dict[str, Map] = {}
            for name, kind, key, value, entries in (
                ("selected", MapKind.HASH, PID.size, ENTRY.size, selected_limit),
                ("executables", MapKind.HASH, records.EXECUTABLE.size, _VERDICT.size, executables_limit),
                ("ring", MapKind.RINGBUF, 0, 0, ring_bytes),
                ("counts", MapKind.ARRAY, PID.size, _COUNT.size, len(Count)),
                ("scratch", MapKind.PERCPU_ARRAY, PID.size, records.SCRATCH_BYTES, 1),
            ):
                maps[name] = Map.create(kind, key, value, entries, f"ms_{name}")
                held.callback(maps[name].close)
            ring = RingBuffer(maps["ring"].fd, ring_bytes)
            held.callback(ring.close)
            fds = Maps(**{each: one.fd for each, one in maps.items()})
            programs, exchange = _loaded(fds, types, held)
            monitor = cls(maps, ring, programs, exchange)
            links: dict[str, int] = {}
            for name, program in programs.items():
                links[name] = bpf.attach_to_tracepoint(program)
                held.callback(os.close, links[name])
            monitor._links = links
            monitor._held = held.pop_all()
            return monitor

    # -- what happens --------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._ring.fileno()

    def drain(self) -> list[ProcessEvent | Scanned]:
        """What happened since the last call, in order; the first time, and after a loss, a scan is the last item."""
        events: list[ProcessEvent | Scanned] = [parse_process(record) for record in self._ring.drain()]
        if self._is_scanned and not events:  # where something is lost, the ring was full
            return []
        lost = self.lost
        if lost > self._told_lost or not self._is_scanned:
            events.append(self._scan(lost - self._told_lost))
            self._told_lost, self._is_scanned = lost, True
        return events

    def _scan(self, lost: int) -> Scanned:
        began_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        found = tuple(living())
        return Scanned(began_ns, time.clock_gettime_ns(time.CLOCK_MONOTONIC), found, lost)

    @property
    def lost(self) -> int:
        """Records that could not be told so far: no room in the ring, or a program ran within itself."""
        skipped = sum(bpf.run_count(fd).skipped for fd in self._programs.values())
        return skipped + sum(self._count(kind) for kind in _LOST.values())

    @property
    def unselected_for_want_of_room(self) -> int:
        """How often an entry could not be written, because `selected` was full: that process counts as not selected."""
        return self._count(Count.NO_ROOM)

    def run_counts(self) -> Mapping[str, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`): fork, exec, exit."""
        return {name: bpf.run_count(fd) for name, fd in self._programs.items()}

    def _count(self, kind: Count) -> int:
        value = self._maps["counts"].lookup(PID.pack(kind))
        assert value is not None  # an array map has all its elements
        count: int = _COUNT.unpack(value)[0]
        return count

    # -- who is selected -----------------------------------------------------------------------------------------------
    @property
    def selected_fd(self) -> int:
        """The map pid → entry, for whoever looks a process up at connect(); ours, so duplicate it by passing it on."""
        return self._maps["selected"].fd

    def know(self, executable: Executable, verdict: Verdict) -> bool:
        """Whatever executes this file gets `verdict` before its first instruction; none: it is not selected.

        Only for what depends on the file alone. A file with several names must not be known: its path may be another
        next time. False: no room, and executing it stays undecided.
        """
        try:
            self._maps["executables"].update(executable.key(), _VERDICT.pack(verdict))
        except OSError:
            return False
        return True

    def forget(self, executable: Executable) -> None:
        """Executing this file is undecided from now on."""
        self._maps["executables"].delete(executable.key())

    def forget_executables(self) -> None:
        """Whatever is executed from now on is undecided: the policy has changed."""
        for key in list(self._maps["executables"].keys()):
            self._maps["executables"].delete(key)

    def entry_of(self, pid: int) -> int:
        """The entry now; 0: none."""
        value = self._maps["selected"].lookup(PID.pack(pid))
        return 0 if value is None else int(ENTRY.unpack(value)[0])

    def entries(self) -> Mapping[int, int]:
        """All entries now, by pid."""
        keys = list(self._maps["selected"].keys())
        pids = [int(PID.unpack(key)[0]) for key in keys]
        return {pid: number for pid in pids if (number := self.entry_of(pid))}

    def decide(self, pid: int, told: int, verdict: Verdict) -> bool:
        """Give the program that has the entry `told` (in an event) this verdict.

        False, and nothing changes, if that is not its entry any more: it has executed something else, or ended, or was
        decided before.
        """
        return bpf.run(self._exchange, pid, told, entry(told, verdict)) == 0

    def adopt(self, pid: int, start_ticks: int, verdict: Verdict) -> bool:
        """Give a process without an entry its first one: it was found by a scan, or forked by one that was.

        False: it has one, or has ended, or there is no room. What it forked before has none, and is adopted likewise
        when `drain` tells of it.
        """
        number = entry(start_ticks * (10**9 // TICKS_PER_S), verdict)
        try:
            if not self._maps["selected"].insert(PID.pack(pid), ENTRY.pack(number)):
                return False
        except OSError:
            return False
        if _start_ticks(pid) == start_ticks:
            return True
        self.decide(pid, number, Verdict(0))  # the pid is somebody else's by now, or nobody's
        return False

    # -- its end -------------------------------------------------------------------------------------------------------
    def pin(self, folder: Path) -> None:
        """Entries are kept up to date in the kernel whatever becomes of us, as long as these pins on a bpffs live.

        `connect_hook.reap` removes them, with the hook's own in the same folder. Idempotent.
        """
        for name, link in self._links.items():
            path = folder / f"link_{name}"
            if not path.exists():
                bpf.pin(link, str(path))

    def close(self) -> None:
        """Detach, and let go of everything. Idempotent."""
        self._held.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kernel_types() -> Btf:
    try:
        return Btf(BTF_FILE.read_bytes())
    except (OSError, MalformedBtf) as error:
        raise EbpfUnavailable(
            f"this kernel's types cannot be read from {BTF_FILE}: {error}",
            "Use a kernel built with CONFIG_DEBUG_INFO_BTF.",
        ) from error


def _loaded(maps: Maps, types: Btf, held: ExitStack) -> tuple[Mapping[str, int], int]:
    """The three programs by name, and the one that exchanges an entry."""
    try:
        at = Offsets.of(types)
        btf_ids = {name: types.typedef_id(f"btf_trace_sched_process_{name}") for name in _LOST}
    except (MalformedBtf, NoSuchMember) as error:
        raise EbpfUnavailable(f"this kernel keeps its processes otherwise: {error}", "Tell us its version.") from error
    code = {
        "fork": process_programs.started(maps, at),
        "exec": process_programs.executed(maps, at),
        "exit": process_programs.ended(maps, at),
    }
    programs: dict[str, int] = {}
    for name, instructions in code.items():
        programs[name] = bpf.load_tracing(instructions, btf_ids[name], f"mitmsec_{name}")
        held.callback(os.close, programs[name])
    exchange = bpf.load_runnable(process_programs.exchange(maps), "mitmsec_decide")
    held.callback(os.close, exchange)
    return programs, exchange


def _start_ticks(pid: int) -> int | None:
    folder = opened(pid)
    if folder is None:
        return None
    try:
        status = status_of(folder)
        return None if status is None or status.is_ended else status.start_ticks
    finally:
        os.close(folder)
