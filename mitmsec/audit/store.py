"""The log on disk: SQLite, appended to by one process in whole batches, each durable before `append` returns.

    append([draft, …]) ── number, seal, chain ── one transaction (WAL, synchronous=FULL) ── fsync ──► Head

A row is its number, its envelope, the chain's head after it, and search columns, which are computed from the envelope
and so can be verified. A batch that fails leaves nothing behind and may be tried again. mitmsec.audit.schema
makes the tables, through sqlite-utils; the append is plain executemany, which is several times faster.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from mitmsec.audit.chain import EMPTY, Head
from mitmsec.audit.envelope import COLUMNS, Draft, columns_of, sealed

FILE_NAME = "audit.db"
WAL_KEPT_BYTES = 16 << 20
ROW = ("seq", *COLUMNS, "envelope", "head")
INSERT = f"INSERT INTO events ({', '.join(ROW)}) VALUES ({', '.join('?' * len(ROW))})"  # noqa: S608

SCHEMA_VERSION = 1  # how many migrations mitmsec.audit.schema has


class LogDamaged(Exception):
    """What is on disk is no log, or its end does not follow from what is before it; nothing can be appended to it."""


class LogUnwritable(Exception):
    """The disk did not take a batch. Nothing of it is in the log; it may be tried again."""


class Store:
    """The log in `folder`, open for appending. One writer at a time; not thread-safe.

    Opening makes or recovers the log. Raises LogDamaged, or LogUnwritable where it cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            with contextlib.ExitStack() as unless_opened:
                self._conn = _opened(self.path, unless_opened)
                self.head = _last_head(self._conn)
                unless_opened.pop_all()
        except (sqlite3.OperationalError, OSError) as error:
            raise LogUnwritable(f"{self.path}: {error}") from error
        except sqlite3.Error as error:  # no database, or one whose pages contradict each other
            raise LogDamaged(f"{self.path}: {error}") from error

    def append(self, drafts: Sequence[Draft]) -> Head:
        """Number and append `drafts`, in order. They are on disk when this returns. Raises LogUnwritable."""
        head, rows = self.head, []
        for draft in drafts:
            fields, envelope = sealed(draft, head.size)
            head = head.after(envelope)
            rows.append((head.size - 1, *columns_of(fields), envelope.decode(), head.hash))
        conn = self._conn
        try:
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany(INSERT, rows)
            conn.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
            raise LogUnwritable(f"{self.path}: {error}") from error
        self.head = head
        return head

    def close(self) -> None:
        """Idempotent. Moves the write-ahead log into the file."""
        self._conn.close()


def _opened(path: Path, unless_opened: contextlib.ExitStack) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o640))
    conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    unless_opened.callback(conn.close)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    _made(conn)
    folder = os.open(path.parent, os.O_RDONLY)  # the file's name must survive a power cut as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return conn


def _made(conn: sqlite3.Connection) -> None:
    """The tables are there, as this version wants them."""
    if conn.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        return
    from mitmsec.audit.schema import bring_up_to_date

    bring_up_to_date(conn)


def _last_head(conn: sqlite3.Connection) -> Head:
    """The head to go on from, once it is proved that the last row follows from the one before it."""
    count, top = conn.execute("SELECT count(*), max(seq) FROM events").fetchone()
    if count == 0:
        return EMPTY
    if top != count - 1:
        raise LogDamaged(f"the log has {count} events, but the last one is number {top}")
    rows = conn.execute("SELECT seq, envelope, head FROM events ORDER BY seq DESC LIMIT 2").fetchall()
    (_, envelope, stored), before = rows[0], rows[1:]
    head = (Head(top, before[0][2]) if before else EMPTY).after(envelope.encode())
    if head.hash != stored:
        raise LogDamaged(f"event {top} does not follow from the events before it")
    return head
