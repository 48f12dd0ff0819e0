"""Content that lies beside the log, `STATE/log/content.db`: each encrypted under a key of its own, each erasable.

    keep ── sealed, its own key wrapped ── one transaction, on disk ──► the event that names it may be appended
    doom ── the event that says so is on disk ──► erase: key and ciphertext are gone from the file and from its WAL

The log holds an SHA-256 of each ciphertext, so erasure changes nothing in it. A row stays when its content is erased,
and says when. What wraps the keys lies in another file (mitmsec.seal). Used in one thread at a time; every method
raises VaultUnwritable where the disk or the file does not take it, and nothing of it is done then.

SQLite moves rows within and between pages as others change their size, and not even `secure_delete` then wipes all
that they leave behind (measured). So keys have a table in which none ever moves: rows are appended, never removed, and
overwritten with as many zeros. Of a ciphertext, which goes with its row, something may be left; nobody can read it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mitmsec.core.model import Value
from mitmsec.core.unmasking import Unmasking

FILE_NAME = "content.db"
ERASED_AT_ONCE = 2000  # rows in one transaction
SHOWN_REQUESTS = 200

_TABLES = """
CREATE TABLE IF NOT EXISTS content (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, event TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  connection TEXT NOT NULL, user TEXT, uid TEXT, created_s INTEGER NOT NULL, expires_s INTEGER,
  origin TEXT NOT NULL, key_id TEXT NOT NULL, doomed TEXT, erased_s INTEGER);
CREATE TABLE IF NOT EXISTS sealed (number INTEGER PRIMARY KEY, sealed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, key BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS content_connection ON content (connection) WHERE erased_s IS NULL;
CREATE INDEX IF NOT EXISTS content_expires ON content (expires_s) WHERE erased_s IS NULL AND expires_s IS NOT NULL;
CREATE INDEX IF NOT EXISTS content_doomed ON content (doomed) WHERE doomed IS NOT NULL;
CREATE TABLE IF NOT EXISTS unmaskings (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, event TEXT NOT NULL, request BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS unmaskings_event ON unmaskings (event);
CREATE TABLE IF NOT EXISTS checked (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
"""


class VaultUnwritable(OSError):
    """The file cannot be opened, or did not take something."""


class Unopened(Exception):
    """Content that does not open: its key is another one's, or it was changed."""


class Content(Value, frozen=True):
    """One content, sealed, and what it is found again by. `expires_s` None: it stays until somebody erases it."""

    id: str
    event: str
    kind: str
    connection: str
    user: str | None
    uid: str | None
    created_s: int
    expires_s: int | None
    origin: str
    key_id: str
    sealed: bytes
    key: bytes


_NAMES = Content.__struct_fields__[:-2]  # the columns of `content`


class Wanted(Value, frozen=True):
    """Content that meets every one of these that is given."""

    user: str = ""
    connection: str = ""
    event: str = ""
    before_s: int | None = None


class Sealer(Protocol):
    """Encrypts content (mitmsec.seal)."""

    @property
    def key_id(self) -> str: ...

    def sealed(self, clear: bytes, about: bytes) -> tuple[bytes, bytes]: ...

    def opened(self, key_id: str, key: bytes, sealed: bytes, about: bytes) -> bytes: ...


def about(origin: str, event: str) -> bytes:
    """What a ciphertext is bound to, so that it opens as no other event's: the log's name and the event's id."""
    return f"{origin}\n{event}".encode()


def _sync(folder: Path) -> None:
    """The names of files there survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Vault:
    """The file in `folder`, made where there is none. What an earlier recorder left in the WAL is moved into it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._is_wal_to_be_emptied = False
        with self._told():
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self._conn = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
            try:
                self._conn.execute("PRAGMA journal_mode = WAL")
                self._conn.execute("PRAGMA synchronous = FULL")
                self._conn.execute("PRAGMA secure_delete = ON")
                self._conn.execute("PRAGMA temp_store = MEMORY")  # nothing of it lies in a file that is only unlinked
                self._conn.executescript(_TABLES)
                self._empty_wal()
                _sync(folder)
            except BaseException:
                self._conn.close()
                raise

    def keep(self, contents: Sequence[Content]) -> None:
        """On disk when this returns."""
        insert = f"INSERT INTO content ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"  # noqa: S608
        with self._transaction():
            for one in contents:
                *told, sealed, key = msgspec.structs.astuple(one)
                number = self._conn.execute(insert, told).lastrowid
                self._conn.execute("INSERT INTO sealed VALUES (?, ?)", (number, sealed))
                self._conn.execute("INSERT INTO keys VALUES (?, ?)", (number, key))

    def find(self, event: str) -> Content | None:
        """That of this event, unless it is erased, or about to be."""
        names = f"{', '.join(_NAMES)}, sealed, key FROM content JOIN sealed USING (number) JOIN keys USING (number)"
        sql = f"SELECT {names} WHERE event = ? AND erased_s IS NULL AND doomed IS NULL"
        with self._told():
            row = self._conn.execute(sql, (event,)).fetchone()
        return None if row is None else Content(**dict(zip(Content.__struct_fields__, row, strict=True)))

    def times(self, event: str) -> tuple[int, int | None, int | None] | None:
        """Of that of this event, erased or not: since when, until when, and when it was erased; None: none was kept."""
        sql = "SELECT created_s, expires_s, erased_s FROM content WHERE event = ?"
        with self._told():
            row: tuple[int, int | None, int | None] | None = self._conn.execute(sql, (event,)).fetchone()
        return row

    def size(self) -> int:
        """How many contents there are that are not erased."""
        return int(self._one("SELECT count(*) FROM content WHERE erased_s IS NULL"))

    def under_other_keys(self, key_ids: Iterable[str]) -> int:
        """How many contents there are whose keys are wrapped by none of these."""
        known = list(key_ids)
        marks = ", ".join("?" * len(known))
        sql = f"SELECT count(*) FROM content WHERE erased_s IS NULL AND key_id NOT IN ({marks})"  # noqa: S608
        return int(self._one(sql, *known))

    def remove_orphans(self, lost: Callable[[Set[str], int], Set[str]]) -> int:
        """Content of events that never came on record goes; how many. Each is asked about at one start only.

        `lost` says which of these events are not on record, the first of which may have come when it is told.
        """
        checked = self._one("SELECT coalesce(max(number), 0) FROM checked")
        with self._told():
            sql = "SELECT number, event, created_s FROM content WHERE number > ?"
            rows = self._conn.execute(sql, (checked,)).fetchall()
        if not rows:
            return 0
        gone = lost({event for _, event, _ in rows}, min(created_s for _, _, created_s in rows))
        orphans = [(number,) for number, event, _ in rows if event in gone]
        with self._transaction():
            self._overwrite(orphans)
            self._conn.executemany("DELETE FROM content WHERE number = ?", orphans)
            self._conn.execute("INSERT OR REPLACE INTO checked VALUES (1, ?)", (max(number for number, *_ in rows),))
        if orphans:
            self._empty_wal()
        return len(orphans)

    # -- erasure -------------------------------------------------------------------------------------------------------
    def doom(self, order: str, wanted: Wanted) -> int:
        """All of it that is there belongs to the erasure `order` now, and is shown to nobody more; how much it is."""
        conditions: list[str] = ["erased_s IS NULL", "doomed IS NULL"]
        values: list[Any] = []
        for condition, value in (
            ("(user = ? OR uid = ?)", wanted.user),
            ("connection = ?", wanted.connection),
            ("event = ?", wanted.event),
        ):
            if value:
                conditions.append(condition)
                values += [value] * condition.count("?")
        if wanted.before_s is not None:
            conditions.append("created_s < ?")
            values.append(wanted.before_s)
        return self._doomed(order, " AND ".join(conditions), values)

    def doom_expired(self, order: str, now_s: int) -> int:
        """Likewise, what was to be kept until now."""
        where = "erased_s IS NULL AND doomed IS NULL AND expires_s IS NOT NULL AND expires_s <= ?"
        return self._doomed(order, where, [now_s])

    def _doomed(self, order: str, where: str, values: Sequence[Any]) -> int:
        with self._transaction():
            return self._conn.execute(f"UPDATE content SET doomed = ? WHERE {where}", (order, *values)).rowcount  # noqa: S608

    def unfinished(self) -> dict[str, int]:
        """Erasures that were begun and are not done, and how much is left of each.

        What somebody who read it has kept in the WAL goes, too, now that it may.
        """
        if self._is_wal_to_be_emptied:
            with contextlib.suppress(VaultUnwritable):
                self._empty_wal()
        with self._told():
            sql = "SELECT doomed, count(*) FROM content WHERE doomed IS NOT NULL GROUP BY doomed"
            return dict(self._conn.execute(sql).fetchall())

    def erase(self, order: str, now_s: int) -> bool:
        """Some of what belongs to that erasure is erased; whether there is more. With the last, no file has it."""
        with self._transaction():
            sql = "SELECT number FROM content WHERE doomed = ? LIMIT ?"
            some = self._conn.execute(sql, (order, ERASED_AT_ONCE)).fetchall()
            self._overwrite(some)
            erased = "UPDATE content SET doomed = NULL, erased_s = ? WHERE number = ?"
            self._conn.executemany(erased, [(now_s, number) for (number,) in some])
        if len(some) == ERASED_AT_ONCE:
            return True
        self._empty_wal()
        return False

    def _overwrite(self, numbers: Sequence[tuple[int]]) -> None:
        """Where they lie: a row of another size would be put elsewhere."""
        self._conn.executemany("UPDATE keys SET key = zeroblob(length(key)) WHERE number = ?", numbers)
        self._conn.executemany("DELETE FROM sealed WHERE number = ?", numbers)

    def limit(self, evidence_s: int) -> None:
        """Nothing that is there is kept for longer since it came."""
        which = "erased_s IS NULL AND (expires_s IS NULL OR expires_s > created_s + ?1)"
        with self._transaction():
            self._conn.execute(f"UPDATE content SET expires_s = created_s + ?1 WHERE {which}", (evidence_s,))  # noqa: S608

    # -- requests to see something -------------------------------------------------------------------------------------
    def note(self, one: Unmasking) -> None:
        """It, or what has become of it."""
        sql = "INSERT INTO unmaskings (id, event, request) VALUES (?, ?, ?)"
        sql += " ON CONFLICT (id) DO UPDATE SET request = excluded.request"
        with self._transaction():
            self._conn.execute(sql, (one.id, one.event, msgspec.json.encode(one)))

    def unmasking(self, request: str) -> Unmasking | None:
        """The request of this id."""
        return next(self._unmaskings("id = ?", request), None)

    def unmaskings_of(self, event: str) -> list[Unmasking]:
        """The requests to see what lies beside that event, the newest first."""
        return list(self._unmaskings("event = ?", event))

    def unmaskings(self) -> list[Unmasking]:
        """The newest requests first."""
        return list(self._unmaskings("1"))

    def _unmaskings(self, where: str, *values: str) -> Iterator[Unmasking]:
        sql = f"SELECT request FROM unmaskings WHERE {where} ORDER BY number DESC LIMIT {SHOWN_REQUESTS}"  # noqa: S608
        with self._told():
            rows = self._conn.execute(sql, values).fetchall()
        return (msgspec.json.decode(row[0], type=Unmasking) for row in rows)

    # -- the file ------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Idempotent. Moves the WAL into the file."""
        with contextlib.suppress(sqlite3.Error):
            self._conn.close()

    def _empty_wal(self) -> None:
        self._is_wal_to_be_emptied = True
        with self._told():
            busy, _, _ = self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise VaultUnwritable(f"{self.path}: somebody else reads it, so what was erased is still in its WAL")
        self._is_wal_to_be_emptied = False

    def _one(self, sql: str, *values: str) -> Any:
        with self._told():
            return self._conn.execute(sql, values).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._conn.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._conn.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The message of an error of SQLite's holds no content."""
        try:
            yield
        except VaultUnwritable:
            raise
        except (sqlite3.Error, OSError) as error:
            raise VaultUnwritable(f"{self.path}: {error}") from None
