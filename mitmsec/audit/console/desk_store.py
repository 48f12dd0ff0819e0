"""The reviewers' tables in STATE/review: accounts, sessions, cases and their history, saved views. The console's alone.

Nothing in here is evidence: what was done with a finding stands in the log, where it cannot be changed. Of a password
there is its Argon2id hash, of a session's token its SHA-256. Short statements, each committed before it returns; used
from the console's loop, and by `mitmsec audit account`, which is another process.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils
from sqlite_utils import Migrations

from mitmsec.audit.console.desk import Case, State, Step
from mitmsec.audit.console.duty import Duty, Person
from mitmsec.core.model import Value

FILE_NAME = "desk.db"
IDLE, ABSOLUTE = timedelta(minutes=30), timedelta(hours=10)
HISTORY_LIMIT = 500
VIEWS_LIMIT = 50

migrations = Migrations("mitmsec.console")


@migrations()
def tables(db: sqlite_utils.Database) -> None:
    """The first schema."""
    db.table("accounts").create(
        {"name": str, "duty": str, "hash": str, "must_change": int, "created": str},
        pk="name",
        not_null={"duty", "hash"},
    )
    db.table("sessions").create(
        {"token": str, "name": str, "csrf": str, "began": str, "seen": str, "address": str}, pk="token"
    )
    db.table("cases").create(
        {"event": str, "state": str, "assignee": str, "changed": str, "content": str}, pk="event"
    ).create_index(["state", "changed"])
    db.table("history").create(
        {"number": int, "event": str, "at": str, "name": str, "operation": str, "detail": str}, pk="number"
    ).create_index(["event"])
    db.table("views").create({"number": int, "name": str, "title": str, "address": str}, pk="number")


class DeskUnusable(Exception):
    """The tables cannot be read or written; the text says why."""


class Account(Value, frozen=True):
    name: str
    duty: Duty
    hash: str
    must_change: bool
    created: str


class Session(Value, frozen=True):
    """`token` is the hash of what the browser holds."""

    token: str
    name: str
    csrf: str
    began: str
    seen: str
    address: str


class Entry(Value, frozen=True):
    """One line of a case's history."""

    at: str
    name: str
    operation: str
    detail: str


class View(Value, frozen=True):
    number: int
    title: str
    address: str


class DeskStore:
    """The tables in `folder`, made where they are not. All methods raise DeskUnusable."""

    def __init__(self, folder: Path) -> None:
        with _told():
            self._db = _opened(folder / FILE_NAME)

    def close(self) -> None:
        self._db.close()

    def _rows(self, sql: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        with _told():
            return list(self._db.query(sql, list(values)))

    def _do(self, sql: str, *values: Any) -> int:
        """How many rows it changed."""
        with _told():
            return int(self._db.conn.execute(sql, values).rowcount)

    # -- accounts ------------------------------------------------------------------------------------------------------
    def accounts(self) -> list[Account]:
        return [
            msgspec.convert(row, Account, strict=False) for row in self._rows("SELECT * FROM accounts ORDER BY name")
        ]

    def account(self, name: str) -> Account | None:
        rows = self._rows("SELECT * FROM accounts WHERE name = ?", [name])
        return msgspec.convert(rows[0], Account, strict=False) if rows else None

    def add_account(self, name: str, duty: Duty, hashed: str, now: datetime) -> bool:
        """With a password that must be changed at first. False: there is one of this name, whatever the case."""
        if name.casefold() in {one.name.casefold() for one in self.accounts()}:
            return False
        sql = "INSERT INTO accounts VALUES (?, ?, ?, 1, ?) ON CONFLICT DO NOTHING"
        return self._do(sql, name, duty.value, hashed, _stamp(now)) == 1

    def remove_account(self, name: str) -> bool:
        self.end_sessions(name)
        return self._do("DELETE FROM accounts WHERE name = ?", name) == 1

    def change_duty(self, name: str, duty: Duty) -> bool:
        """Its sessions end: what they were shown is not for it any more."""
        self.end_sessions(name)
        return self._do("UPDATE accounts SET duty = ? WHERE name = ?", duty.value, name) == 1

    def change_password(self, name: str, hashed: str, *, must_change: bool) -> bool:
        self.end_sessions(name)
        sql = "UPDATE accounts SET hash = ?, must_change = ? WHERE name = ?"
        return self._do(sql, hashed, int(must_change), name) == 1

    # -- sessions ------------------------------------------------------------------------------------------------------
    def begin_session(self, name: str, address: str, now: datetime) -> str:
        """The new session's token, which only its browser keeps."""
        token = secrets.token_urlsafe(32)
        at = _stamp(now)
        values = (_hashed(token), name, secrets.token_urlsafe(32), at, at, address)
        self._do("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", *values)
        return token

    def session(self, token: str, now: datetime, *, is_use: bool = True) -> tuple[Session, Account] | None:
        """The session with this token, and whose it is; None where it is over. `is_use`: by a person, just now."""
        rows = self._rows("SELECT * FROM sessions WHERE token = ?", [_hashed(token)])
        if not rows:
            return None
        session = msgspec.convert(rows[0], Session)
        account = self.account(session.name)
        began, seen = (datetime.fromisoformat(at) for at in (session.began, session.seen))
        if account is None or now - seen > IDLE or now - began > ABSOLUTE or now < began - IDLE:
            self._do("DELETE FROM sessions WHERE token = ?", session.token)
            return None
        if is_use and now - seen > timedelta(seconds=20):
            self._do("UPDATE sessions SET seen = ? WHERE token = ?", _stamp(now), session.token)
        return session, account

    def sessions(self) -> list[Session]:
        return [msgspec.convert(row, Session) for row in self._rows("SELECT * FROM sessions ORDER BY seen DESC")]

    def end_session(self, hashed: str) -> bool:
        """By the token's hash."""
        return self._do("DELETE FROM sessions WHERE token = ?", hashed) == 1

    def end_sessions(self, name: str) -> None:
        self._do("DELETE FROM sessions WHERE name = ?", name)

    def forget_sessions(self, now: datetime) -> None:
        """Those that are over."""
        idle, absolute = _stamp(now - IDLE), _stamp(now - ABSOLUTE)
        self._do("DELETE FROM sessions WHERE seen < ? OR began < ?", idle, absolute)

    # -- cases ---------------------------------------------------------------------------------------------------------
    def case(self, event: str) -> Case | None:
        rows = self._rows("SELECT content FROM cases WHERE event = ?", [event])
        return msgspec.json.decode(rows[0]["content"], type=Case) if rows else None

    def cases(self, events: Iterable[str]) -> dict[str, Case]:
        """Those of these events that somebody has begun with."""
        wanted = list(events)
        marks = ", ".join("?" * len(wanted))
        rows = self._rows(f"SELECT event, content FROM cases WHERE event IN ({marks})", wanted)  # noqa: S608
        return {row["event"]: msgspec.json.decode(row["content"], type=Case) for row in rows}

    def in_state(self, state: State | None, assignee: str | None, limit: int) -> list[Case]:
        """Of all cases that somebody has begun with, what changed last first."""
        sql = "SELECT content FROM cases WHERE (? IS NULL OR state = ?) AND (? IS NULL OR assignee = ?)"
        values = (state, state, assignee, assignee, limit)
        rows = self._rows(f"{sql} ORDER BY changed DESC LIMIT ?", values)
        return [msgspec.json.decode(row["content"], type=Case) for row in rows]

    def counts(self) -> dict[str, int]:
        """Of cases that somebody has begun with, by state."""
        rows = self._rows("SELECT state, count(*) AS number FROM cases GROUP BY state")
        return {row["state"]: row["number"] for row in rows}

    def waiting(self) -> list[Case]:
        """Where somebody asks to see what was redacted."""
        sql = "SELECT content FROM cases WHERE json_extract(content, '$.unmask.state') = 'asked' ORDER BY changed"
        return [msgspec.json.decode(row["content"], type=Case) for row in self._rows(sql)]

    def keep(self, step: Step, person: Person, now: datetime) -> None:
        """The case as it is now, with a line of history, at once."""
        case = step.case
        row = (case.event, case.state.value, case.assignee, case.changed, msgspec.json.encode(case).decode())
        line = (case.event, _stamp(now), person.name, step.operation, step.detail)
        with _told(), self._db.atomic():
            self._do("INSERT OR REPLACE INTO cases VALUES (?, ?, ?, ?, ?)", *row)
            self._do("INSERT INTO history (event, at, name, operation, detail) VALUES (?, ?, ?, ?, ?)", *line)

    def history(self, event: str) -> list[Entry]:
        """The newest first."""
        sql = "SELECT at, name, operation, detail FROM history WHERE event = ? ORDER BY number DESC LIMIT ?"
        return [msgspec.convert(row, Entry) for row in self._rows(sql, [event, HISTORY_LIMIT])]

    # -- saved views ---------------------------------------------------------------------------------------------------
    def views(self, name: str) -> list[View]:
        rows = self._rows("SELECT number, title, address FROM views WHERE name = ? ORDER BY title", [name])
        return [msgspec.convert(row, View) for row in rows]

    def save_view(self, name: str, title: str, address: str) -> bool:
        """False: there are as many as may be."""
        if len(self.views(name)) >= VIEWS_LIMIT:
            return False
        return self._do("INSERT INTO views (name, title, address) VALUES (?, ?, ?)", name, title, address) == 1

    def remove_view(self, name: str, number: int) -> None:
        self._do("DELETE FROM views WHERE name = ? AND number = ?", name, number)


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _opened(path: Path) -> sqlite_utils.Database:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    conn = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)  # one at a time
    try:
        conn.execute("PRAGMA synchronous = FULL")
        db = sqlite_utils.Database(conn, execute_plugins=False)
        migrations.apply(db)
    except BaseException:
        conn.close()
        raise
    return db


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DeskUnusable(f"the reviewers' tables cannot be used: {error}") from error
