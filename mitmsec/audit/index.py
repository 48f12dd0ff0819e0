"""The index beside the log: what searches and overviews ask, made of the log alone, and made anew at any time.

    audit.db  events, tree ──► Index.add ──┬─ names     each text once: kinds, programs, hosts, users, …
              (the truth)      behind by   ├─ found     one row an event, of small numbers; by app, host, user, detector
                               a second at ├─ keys      by id, and by connection
                               most        ├─ words     of what events say (FTS5, which keeps no text)
                                           ├─ counts    by hour, day and week, for each value of a facet
                                           └─ hours     which numbers an hour's events have

Nothing is proven by it and nothing is lost with it. So it is a file of its own, its commits do not wait for the disk,
readers look themselves through the events that it does not have yet, and one that is damaged, of another version or of
another log is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mitmsec.audit.criteria import FACETS
from mitmsec.audit.envelope import Fields
from mitmsec.audit.indexed import COARSE_H, COUNTED, Rows, rows_of

FILE_NAME = "index.db"
VERSION = 2
NAMES_KEPT = 200_000  # in memory
CACHE_BYTES = 32 << 20
DISKS_FAULTS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
ALL = ""  # the facet that all events have alike
NEVER_H = 1 << 40
WAL_KEPT_BYTES = 16 << 20

SCHEMA = f"""
CREATE TABLE about (version INTEGER, size INTEGER, leaf BLOB, coarse_size INTEGER, coarse_until INTEGER);
CREATE TABLE names (id INTEGER PRIMARY KEY, facet TEXT, text TEXT, UNIQUE (facet, text));
CREATE TABLE found (seq INTEGER PRIMARY KEY, hour INTEGER, {", ".join(f"{facet} INTEGER" for facet in FACETS)},
    sent INTEGER, received INTEGER);
CREATE TABLE keys (key INTEGER, seq INTEGER, PRIMARY KEY (key, seq)) WITHOUT ROWID;
CREATE TABLE counts (level_h INTEGER, facet TEXT, since INTEGER, value INTEGER, kind INTEGER, action INTEGER,
    total INTEGER NOT NULL, sent INTEGER NOT NULL, received INTEGER NOT NULL,
    PRIMARY KEY (level_h, facet, since, value, kind, action)) WITHOUT ROWID;
CREATE TABLE hours (hour INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE INDEX by_app ON found (app, seq, hour, kind, action, host, detector, severity) WHERE app > 0;
CREATE INDEX by_host ON found (host, seq, hour, kind, action, app, detector, severity) WHERE host > 0;
CREATE INDEX by_user ON found (user, seq) WHERE user > 0;
CREATE INDEX by_detector ON found (detector, seq, hour, severity, app, host) WHERE detector > 0;
CREATE VIRTUAL TABLE words USING fts5
    (text, content='', columnsize=0, detail=none, tokenize='ascii');
"""
OPEN = "(SELECT id FROM names WHERE facet = 'outcome' AND text = 'open')"
ENDED = f"outcome IS NOT {OPEN}"
KEEP_FOUND = f"INSERT INTO found VALUES ({', '.join('?' * (4 + len(FACETS)))})"
KEEP_HOURS = """
INSERT INTO hours SELECT hour, min(seq), max(seq) FROM found WHERE seq >= ? GROUP BY hour
ON CONFLICT DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last)
"""


def _keep_counts(facet: str, level_h: int) -> str:
    """Counts what was found from a number on, which it takes; a connection once, when it has ended."""
    value = facet or "0"
    where = {"": ENDED, "app": ENDED, "outcome": "outcome > 0"}.get(facet, f"{facet} > 0 AND {ENDED}")
    return f"""
    INSERT INTO counts SELECT {level_h}, '{facet}', hour - hour % {level_h} AS since, {value} AS value, kind, action,
        count(*), sum(sent), sum(received)
    FROM found WHERE seq >= ? AND {where} GROUP BY since, value, kind, action ON CONFLICT DO UPDATE SET
        total = total + excluded.total, sent = sent + excluded.sent, received = received + excluded.received
    """


KEEP_COUNTS = tuple(_keep_counts(facet, 1) for facet in (ALL, *COUNTED))
KEEP_COARSE = tuple(_keep_counts(facet, level_h) for facet in (ALL, *COUNTED) for level_h in COARSE_H)


class _Other(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_MISMATCH


class Index:
    """The index in `folder`, open for writing; one that cannot be gone on with is begun anew. For one thread.

    Raises sqlite3.Error and OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._names: dict[tuple[str, str], int] = {}
        self._conn: sqlite3.Connection
        self.coarse_size = self.size = 0
        """How many events it has: the first so many."""
        self.leaf = b""
        """The hash of the last of them."""
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in DISKS_FAULTS:
                raise
            self.begin_anew()

    def begin_anew(self) -> None:
        """Throw away what it has."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._open()

    def close(self) -> None:
        """Idempotent."""
        self._conn.close()

    def add(self, events: Iterable[tuple[int, Fields]], size: int, leaf: bytes) -> None:
        """Events behind those that it has, in order; then it has the first `size`. All of them or, raising, none."""
        with self._all_or_nothing() as conn:
            self._put(rows_of(events, self._name))
            conn.execute("UPDATE about SET size = ?, leaf = ?", (size, leaf))
        self.size, self.leaf = size, leaf

    def count_coarsely(self) -> None:
        """Have days and weeks counted up to here; for all behind it there are hours."""
        with self._all_or_nothing() as conn:
            for counting in KEEP_COARSE:
                conn.execute(counting, (self.coarse_size,))
            conn.execute("UPDATE about SET coarse_size = ?, coarse_until = ?", (self.size, NEVER_H))
        self.coarse_size = self.size

    @contextmanager
    def _all_or_nothing(self) -> Iterator[sqlite3.Connection]:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield self._conn
            self._conn.execute("COMMIT")
        except BaseException:
            self._names.clear()  # what they stood for may not be there
            with contextlib.suppress(sqlite3.Error):
                self._conn.execute("ROLLBACK")
            raise

    def _put(self, rows: Rows) -> None:
        conn, begin = self._conn, (self.size,)
        conn.executemany(KEEP_FOUND, rows.found)
        conn.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", rows.keys)
        conn.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", rows.words)
        for counting in (KEEP_HOURS, *KEEP_COUNTS):
            conn.execute(counting, begin)
        first = min((row[1] for row in rows.found), default=NEVER_H)
        conn.execute("UPDATE about SET coarse_until = min(coarse_until, ?)", (first,))

    def _open(self) -> None:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o640))
        self._conn = conn = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = NORMAL")
        conn.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        conn.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        if conn.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            conn.executescript(f"BEGIN; {SCHEMA} INSERT INTO about VALUES ({VERSION}, 0, x'', 0, {NEVER_H}); COMMIT")
        about = conn.execute("SELECT version, size, leaf, coarse_size FROM about").fetchone()
        if about is None or about[0] != VERSION:
            raise _Other("it is of another version")
        self._names.clear()
        _, self.size, self.leaf, self.coarse_size = about

    def _name(self, facet: str, text: str) -> int:
        """The number of a text, the same one each time."""
        known = self._names.get((facet, text))
        if known is not None:
            return known
        row = self._conn.execute("SELECT id FROM names WHERE facet = ? AND text = ?", (facet, text)).fetchone()
        if row is None:
            made = self._conn.execute("INSERT INTO names (facet, text) VALUES (?, ?)", (facet, text))
            row = (made.lastrowid,)
        if len(self._names) >= NAMES_KEPT:
            self._names.clear()
        self._names[facet, text] = number = int(row[0])
        return number
