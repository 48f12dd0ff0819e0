"""Keeps the index beside the log up to date, in a process of its own: what is on disk is read once more, and indexed.

    recorder ── wake ──► gather for FOLLOW_S ──► read a chunk ──► Index.add ──┬─ more? at once
             ── END ───► the rest, within CLOSE_S, and end                    └─ the disk takes nothing: RETRY_S
             ── gone ──► end

So the log does not wait for its index, nor share an interpreter with it, and an index that is behind, gone or of
another log catches up by itself. The process is forked before anything secret is read, yields to all others, and may do
what the recorder may. Where the system does not fork, a thread does the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from mitmsec.audit.envelope import Fields
from mitmsec.audit.index import Index
from mitmsec.audit.packing import Packing, Unpackable
from mitmsec.audit.recovery import leaf_of
from mitmsec.audit.store import FILE_NAME

FOLLOW_S = 0.3
RETRY_S = 5.0
CLOSE_S = 5.0  # what is not indexed then is at the next start
CHUNK = 4096  # events a transaction
CHUNK_BYTES = 2 << 20  # packed
COARSE_EVERY = 1 << 17  # events
NICE = 10
SPOILT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR})
PR_SET_PDEATHSIG = 1
WAKE, END = b"w", b"e"
FORKS = hasattr(os, "fork")


class Following:
    """Follows the log in `folder`. `wake` says that there is more; `close` catches up, and ends.

    Made before this process opens the log, which may come later: SQLite's connections do not bear a fork.
    """

    def __init__(self, folder: Path) -> None:
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._process = os.fork() if FORKS else 0
        if FORKS and self._process == 0:
            _be_follower(folder, reading)
        self._thread = threading.Thread(target=_followed, args=(folder, reading), name="index", daemon=True)
        if FORKS:
            os.close(reading)
        else:
            self._thread.start()

    def wake(self) -> None:
        """Never blocks, and never raises."""
        self._say(WAKE)

    def died(self) -> bool:
        """Whether it has ended before it was told to; said once."""
        if not FORKS or self._process == 0 or self._writing < 0:
            return False
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._process, os.WNOHANG) == (0, 0):
                return False
        self._process = 0
        return True

    def close(self) -> None:
        """Idempotent."""
        if self._writing < 0:
            return
        self._say(END)
        os.close(self._writing)
        self._writing = -1
        if FORKS and self._process:
            _ended(self._process)
        elif not FORKS:
            self._thread.join(CLOSE_S + 1.0)

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, OSError):  # it has enough to read; it has gone
            os.write(self._writing, word)


def _ended(process: int) -> None:
    """Wait for it, and not for ever."""
    until_s = time.monotonic() + CLOSE_S + 1.0
    with contextlib.suppress(ChildProcessError):  # SIGCHLD was ignored by who began us: nobody can wait for it
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            if time.monotonic() > until_s:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return
            time.sleep(0.002)


def _be_follower(folder: Path, reading: int) -> None:
    """What the forked process does; it does not return."""
    try:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it ends with the recorder
        descriptor = os.dup2(reading, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.nice(NICE)
        _followed(folder, descriptor)
    except BaseException as error:
        _tell(f"searches will be slow, for nobody makes the index any more: {type(error).__name__}: {error}")
    finally:
        os._exit(0)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"mitmsec recorder: {text}\n".encode(errors="backslashreplace"))


def _followed(folder: Path, reading: int) -> None:
    """Until it is said to end, or nobody is there who could."""
    line = _Line(reading)
    is_told = is_spoilt = False
    line.wait()
    while not line.gone():
        try:
            _follow(folder, line, anew=is_spoilt)
            return
        except (sqlite3.Error, OSError, LookupError) as error:
            is_spoilt = getattr(error, "sqlite_errorcode", 0) & 0xFF in SPOILT  # once: it may be the log that is
            if not is_told:
                _tell(f"searches are slow, for the index is behind: {error}")
                is_told = True
        if line.is_over or line.heard(RETRY_S):
            return


class _Line:
    """What the recorder says."""

    def __init__(self, reading: int) -> None:
        self._reading = reading
        self.is_over = False
        """It is to end, or has ended."""
        self._is_gone = False

    def gone(self) -> bool:
        """Nobody is there any more who wants anything."""
        return self._is_gone

    def wait(self) -> None:
        """Until there is more."""
        self._take()

    def heard(self, within_s: float) -> bool:
        """Whether it is over, or is within so long."""
        until_s = time.monotonic() + within_s
        while not self.is_over and select.select([self._reading], [], [], max(0.0, until_s - time.monotonic()))[0]:
            self._take()
        return self.is_over

    def _take(self) -> None:
        said = b"" if self.is_over else os.read(self._reading, 4096)
        if not said or END in said:
            self._is_gone = self._is_gone or (not said and not self.is_over)
            self.is_over = True


def _follow(folder: Path, line: _Line, *, anew: bool = False) -> None:
    log = _read_only(folder / FILE_NAME)
    index = None
    try:
        index = Index(folder)
        if anew or (index.size and leaf_of(log, index.size - 1) != index.leaf):
            index.begin_anew()
        while True:
            is_last = line.heard(FOLLOW_S)
            if line.gone():
                return
            _catch_up(log, index, line)
            if is_last:
                return
            line.wait()
    finally:
        log.close()
        if index is not None:
            index.close()


def _catch_up(log: sqlite3.Connection, index: Index, line: _Line) -> None:
    until_s, packing = time.monotonic() + CLOSE_S, Packing()
    while rows := _chunk(log, index.size):
        size = rows[-1][0] + 1
        index.add(numbered(rows, packing), size, leaf_of(log, size - 1))
        if size - index.coarse_size >= COARSE_EVERY:
            index.count_coarsely()
        if line.heard(0) and (line.gone() or time.monotonic() > until_s):
            return


def _chunk(log: sqlite3.Connection, first: int) -> list[tuple[int, object]]:
    """Events from there on, few enough that strangers' long texts do not take the memory."""
    rows: list[tuple[int, object]] = []
    size_bytes = 0
    for seq, frame in log.execute("SELECT seq, envelope FROM events WHERE seq >= ? ORDER BY seq", (first,)):
        rows.append((seq, frame))
        size_bytes += len(frame) if isinstance(frame, bytes) else 0
        if len(rows) >= CHUNK or size_bytes >= CHUNK_BYTES:
            break
    return rows


def numbered(rows: Sequence[tuple[int, object]], packing: Packing) -> Iterator[tuple[int, Fields]]:
    """The events in these rows, one after the other: many at once would have Python look through them for garbage."""
    for seq, frame in rows:
        try:
            event = msgspec.json.decode(packing.unpacked(frame))
        except (Unpackable, msgspec.DecodeError, RecursionError):
            event = None  # `verify` says so
        yield seq, event if isinstance(event, dict) else {}


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=5.0,
    )
