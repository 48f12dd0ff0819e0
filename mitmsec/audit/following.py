"""Keeps the index beside the log up to date, in a thread of its own: what is on disk is read once more, and indexed.

    Committer ── wake ──► gather for FOLLOW_S ──► read a chunk ──► Index.add ──┬─ more? at once
                                                                               └─ the disk takes nothing: RETRY_S

So the log does not wait for its index, and an index that is behind, gone or of another log catches up by itself.
"""

from __future__ import annotations

import sqlite3
import sys
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
COARSE_EVERY = 1 << 17  # events


class Following:
    """Follows the log in `folder`. `wake` says that there may be more; `close` catches up, within CLOSE_S, and ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._more, self._closing = threading.Event(), threading.Event()
        self._more.set()
        self._is_told = False
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._more.set()

    def close(self) -> None:
        """Idempotent."""
        self._closing.set()
        self._more.set()
        self._thread.join(CLOSE_S + 1.0)

    def _run(self) -> None:
        while True:
            try:
                self._follow()
                return
            except (sqlite3.Error, OSError, LookupError) as error:
                if not self._is_told:
                    print(f"mitmsec recorder: searches are slow, for the index is behind: {error}", file=sys.stderr)
                    self._is_told = True
            if self._closing.wait(RETRY_S):
                return

    def _follow(self) -> None:
        """Until it is closed."""
        log, index = _read_only(self._folder / FILE_NAME), Index(self._folder)
        try:
            if index.size and leaf_of(log, index.size - 1) != index.leaf:
                index.begin_anew()
            is_last = False
            while not is_last:
                self._more.wait()
                is_last = self._closing.wait(FOLLOW_S)
                self._more.clear()
                self._catch_up(log, index)
                self._is_told = False
        finally:
            log.close()
            index.close()

    def _catch_up(self, log: sqlite3.Connection, index: Index) -> None:
        until_s = time.monotonic() + CLOSE_S
        packing = Packing()
        sql = "SELECT seq, envelope FROM events WHERE seq >= ? ORDER BY seq LIMIT ?"
        while rows := log.execute(sql, (index.size, CHUNK)).fetchall():
            size = rows[-1][0] + 1
            index.add(numbered(rows, packing), size, leaf_of(log, size - 1))
            if size - index.coarse_size >= COARSE_EVERY:
                index.count_coarsely()
            if self._closing.is_set() and time.monotonic() > until_s:
                return


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
