"""Opening a log for reading: what is there, for whom, and whether it is a log at all. Never writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from mitmsec.audit.recovery import flaw_of_tables
from mitmsec.audit.store import FILE_NAME, SCHEMA_VERSION


class NoLog(Exception):
    """There is no log here that this user can read; the message says why."""


class Denied(NoLog):
    """The log is not for this user; nothing is known of it."""


class Unreadable(Exception):
    """A row, or the file, is no longer what a recorder writes; `verify` says from where on."""


def connected(folder: Path) -> sqlite3.Connection:
    """To the log in `folder`. Raises NoLog, Denied, Unreadable."""
    path = folder / FILE_NAME
    try:
        return _connected(path)
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:  # the file is, its folder is not ours
            raise NoLog(f"the log {path} cannot be read: {error}") from error
        is_empty = path.is_file() and not path.stat().st_size
        why = "it is empty: no recorder leaves a log like that" if is_empty else str(error)
        raise Unreadable(f"the log {path} cannot be read: {why}") from error


def _connected(path: Path) -> sqlite3.Connection:
    try:
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise NoLog(f"there is no log at {path}: nothing has been recorded under this state directory yet") from None
    except PermissionError:
        raise Denied(f"the log {path} is not for you to read") from None
    try:
        return _asked(path, "mode=ro")
    except sqlite3.OperationalError:
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise
        return _asked(path, "immutable=1")  # nobody writes, and we may not make the index: the file is all there is


def _asked(path: Path, how: str) -> sqlite3.Connection:
    conn = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{how}", uri=True, isolation_level=None, timeout=5.0)
    try:
        conn.execute("PRAGMA trusted_schema = OFF")
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        if 0 < version < SCHEMA_VERSION:
            raise NoLog(f"the log {path} is one of an earlier version; the next start of a recorder takes it over")
        if flaw := flaw_of_tables(conn):
            raise sqlite3.DatabaseError(flaw)
        conn.execute("SELECT seq, envelope FROM events WHERE 0").fetchone()  # a page of theirs may be damaged
    except BaseException:
        conn.close()
        raise
    return conn
