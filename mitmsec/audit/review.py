"""Reading the log: which events, one event, and whether the log is whole. Never writes.

    Filter ──► Questions (the index) ──► numbers ──┬─► envelopes, unpacked ──► `meets`? ──► events
               events behind the index, all ───────┘

A live log is read beside its recorder, in snapshots that do not hold it up. One whose recorder was killed is read as
the recorder would recover it. SQLite may have to make its index of the write-ahead log for that; it gives such a file
the log's own owner, so that reading as root leaves nothing behind that the recorder could not use. Without the index
beside it, or with one that is not of this log, every event is looked through: slower, and the same.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from mitmsec.audit import verifying
from mitmsec.audit.checkpoint import Checkpoint, Checks, LogKey, Untrue, parsed
from mitmsec.audit.checkpoint import opened as opened_note
from mitmsec.audit.criteria import Filter, facets_of, meets
from mitmsec.audit.envelope import Fields, canonical
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.indexed import hour_of
from mitmsec.audit.merkle import HASH_BYTES, WIDTH, consistency, inclusion
from mitmsec.audit.packing import Packing, Unpackable
from mitmsec.audit.questions import OVERVIEW, Counted, Questions
from mitmsec.audit.store import FILE_NAME, tiles_of
from mitmsec.audit.verifying import Broken, Entry, Other, Root, Verified
from mitmsec.core.model import Value

TOLD_EVERY = 2048  # events
NO_LIMIT = 1 << 62


class NoLog(Exception):
    """There is no log here that this user can read; the message says why."""


class Denied(NoLog):
    """The log is not for this user; nothing is known of it."""


class Unreadable(Exception):
    """A row, or the file, is no longer what a recorder writes; `verify` says from where on."""


class SignedBy(Value, frozen=True):
    """Whose signatures checkpoints must have: one of these keys'."""

    keys: tuple[LogKey, ...]
    checks: Checks


class Review:
    """Questions to one log."""

    def __init__(self, conn: sqlite3.Connection, questions: Questions | None) -> None:
        self._conn, self._questions = conn, questions
        self._packing = Packing()

    @property
    def indexed_size(self) -> int:
        """How many events searches find without looking through them one by one; the others are the newest."""
        return 0 if self._questions is None else self._questions.size

    def events(self, wanted: Filter) -> Iterator[Fields]:
        """The events that meet `wanted`, oldest first; of more than `limit`, the newest."""
        if wanted.limit is None:
            yield from self._matching(wanted, newest_first=False)
        else:
            yield from list(islice(self._matching(wanted, newest_first=True), wanted.limit))[::-1]

    def _matching(self, wanted: Filter, *, newest_first: bool) -> Iterator[Fields]:
        for event in self._candidates(wanted, newest_first=newest_first):
            if meets(event, wanted):
                yield event

    def _candidates(self, wanted: Filter, *, newest_first: bool) -> Iterator[Fields]:
        after = -1 if wanted.after is None else wanted.after
        before = NO_LIMIT if wanted.before is None else wanted.before
        if self._questions is None or wanted == Filter(after=wanted.after, before=wanted.before, limit=wanted.limit):
            yield from self._between(after, before, newest_first=newest_first)
            return
        behind = self._between(max(after, self._questions.size - 1), before, newest_first=newest_first)
        if newest_first:
            yield from behind
        yield from self._numbered(self._asked(lambda asks: asks.seqs(wanted, newest_first=newest_first)))
        if not newest_first:
            yield from behind

    def _between(self, after: int, before: int, *, newest_first: bool) -> Iterator[Fields]:
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT seq, envelope FROM events WHERE seq > ? AND seq < ? ORDER BY seq {order}"  # noqa: S608
        for seq, frame in self._rows(sql, (after, before)):
            yield self._event(seq, frame)

    def _numbered(self, seqs: Iterator[int]) -> Iterator[Fields]:
        for seq in seqs:
            for (frame,) in self._rows("SELECT envelope FROM events WHERE seq = ?", (seq,)):
                yield self._event(seq, frame)

    def _asked[Answer](self, question: Callable[[Questions], Iterator[Answer]]) -> Iterator[Answer]:
        assert self._questions is not None
        try:
            yield from question(self._questions)
        except sqlite3.Error as error:
            raise Unreadable(
                f"the index of the log cannot be read: {error}; without its file all is found, slower"
            ) from error

    def _event(self, seq: int, frame: object) -> Fields:
        try:
            event = msgspec.json.decode(self._packing.unpacked(frame))
        except (Unpackable, msgspec.DecodeError) as error:
            raise Unreadable(f"event {seq} is no longer what was written: {error}") from error
        if not isinstance(event, dict):
            raise Unreadable(f"event {seq} is no longer what was written: it is no object")
        return event

    def _rows(self, sql: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._conn.execute(sql, values)
        except sqlite3.Error as error:
            raise Unreadable(f"the log cannot be read: {error}") from error

    def event(self, which: str) -> Fields | None:
        """The event of this id, or of this number; of several with one id, the newest."""
        if which.isascii() and which.isdecimal() and len(which) < 19:
            for event in self._numbered(iter([int(which)])):
                return event
        of_id = [event for event in self._about(which) if event.get("id") == which]
        return of_id[-1] if of_id else None

    def of_connection(self, connection: str) -> list[Fields]:
        """Everything that was recorded about one connection, oldest first."""
        return [event for event in self._about(connection) if event.get("connection") == connection]

    def _about(self, text: str) -> Iterator[Fields]:
        """The events that may have this id, or be about this connection."""
        size = self.indexed_size
        if size:
            yield from self._numbered(self._asked(lambda asks: iter(asks.of_id(text))))
        yield from self._between(size - 1, NO_LIMIT, newest_first=False)

    def counts(self, session: str, since: datetime) -> dict[tuple[str, str], int]:
        """Connections of one run that have ended, by action and outcome. Looks at what was recorded from `since` on."""
        wanted = Filter(kind=Kind.CONNECTION, session=session, since=since)
        ended = (event for event in self.events(wanted) if event.get("id") == event.get("connection"))
        return dict(Counter((str(event.get("action")), str(event.get("outcome"))) for event in ended))

    def stopped(self, session: str, since: datetime) -> int:
        """Requests of one run that a finding stopped. Looks at what was recorded from `since` on."""
        wanted = Filter(kind=Kind.REQUEST, session=session, since=since, outcome=Outcome.BLOCKED)
        return sum(1 for _ in self.events(wanted))

    def size(self) -> int:
        """How many events the log has. Raises Unreadable."""
        ((top,),) = self._rows("SELECT max(seq) FROM events")
        return 0 if top is None else int(top) + 1

    def counted(self, wanted: Filter) -> Counted:
        """How many events meet `wanted`, by hour and by what they are; a connection once, when it has ended.

        Of what is indexed whole hours are counted. Raises Unreadable.
        """
        made = Counted()
        if self._questions is not None:
            (made,) = self._asked(lambda asks: iter([asks.counted(wanted)]))
        after = max(self.indexed_size - 1, -1 if wanted.after is None else wanted.after)
        for event in self._matching(replace(wanted, after=after), newest_first=False):
            _count(made, event)
        return made

    def stats(self) -> list[Fields]:
        """Connections by program and action: how many, and bytes each way. Raises Unreadable."""
        volumes: Counter[tuple[str, str, str]] = Counter()
        if self._questions is not None:
            (volumes,) = self._asked(lambda asks: iter([asks.volumes()]))
        for event in self._matching(Filter(kind=Kind.CONNECTION, after=self.indexed_size - 1), newest_first=False):
            if event.get("outcome") != Outcome.OPEN:
                key = facets_of(event).get("app", ""), facets_of(event).get("action", "")
                moved = event.get("bytes") or {}
                for what, number in (("", 1), ("sent", moved.get("sent", 0)), ("received", moved.get("received", 0))):
                    volumes[*key, what] += number
        rows = [
            {
                "app": app or None,
                "action": action or None,
                "connections": volumes[app, action, ""],
                "sent": volumes[app, action, "sent"],
                "received": volumes[app, action, "received"],
            }
            for app, action in {(app, action) for app, action, _ in volumes}
        ]
        return sorted(rows, key=lambda row: (-row["connections"], row["app"] or "", row["action"] or ""))

    # -- what it proves ------------------------------------------------------------------------------------------------
    def verify(
        self,
        kept: Root | None = None,
        told: Callable[[int], None] = lambda seq: None,
        signed_by: SignedBy | None = None,
    ) -> Verified | Broken | Other:
        """Hash every event again, and compare tree, checkpoints and search columns with what comes of it.

        `kept` is a root that the log must have had; `signed_by` has every checkpoint's signature checked. `told(seq)`
        is called now and then, for a progress bar.
        """
        try:
            signed: dict[int, bytes] = {}
            for size, note in self._conn.execute("SELECT size, note FROM checkpoints ORDER BY size"):
                try:
                    checkpoint = _checkpoint(str(note), signed_by)
                except Untrue as error:
                    return Broken(max(signed, default=0), f"the checkpoint of {size} events is none: {error}")
                if checkpoint.size != size:
                    return Broken(
                        max(signed, default=0), f"the checkpoint of {size} events is one of {checkpoint.size}"
                    )
                signed[size] = checkpoint.root
            return verifying.verify(self._entries(told), tiles_of(self._conn), signed, kept)
        except sqlite3.Error as error:
            return Broken(0, f"unreadable: {error}")

    def _entries(self, told: Callable[[int], None]) -> Iterator[Entry]:
        for count, (seq, frame) in enumerate(self._conn.execute("SELECT seq, envelope FROM events ORDER BY seq")):
            if count % TOLD_EVERY == 0:
                told(count)
            try:
                envelope = self._packing.unpacked(frame)
            except Unpackable:
                yield Entry(seq, b"")
            else:
                yield Entry(seq, envelope, _flaw(seq, envelope))

    def signers(self) -> list[tuple[int, LogKey]]:
        """Who signs this log's checkpoints, and from which size on, as the log itself says. Raises Unreadable."""
        try:
            return [
                (size, LogKey.parse(key)) for size, key in self._rows("SELECT size, key FROM signers ORDER BY size")
            ]
        except ValueError as error:
            raise Unreadable(f"the log cannot be read: {error}") from error

    def note(self, least: int = 0) -> str | None:
        """The newest checkpoint, if it stands for so many events. Raises Unreadable."""
        sql = "SELECT note FROM checkpoints WHERE size >= ? ORDER BY size DESC LIMIT 1"
        return next((str(note) for (note,) in self._rows(sql, (least,))), None)

    def shown_to_include(self, seq: int, size: int) -> list[bytes]:
        """That event `seq` is among the first `size`: hashes, from the leaf up. Raises Unreadable."""
        return self._path(lambda: inclusion(seq, size, tiles_of(self._conn)))

    def shown_to_begin_with(self, old: int, new: int) -> list[bytes]:
        """That the first `new` events begin with the first `old`. Raises Unreadable."""
        return self._path(lambda: consistency(old, new, tiles_of(self._conn)))

    def _path(self, proved: Callable[[], list[bytes]]) -> list[bytes]:
        try:
            return proved()
        except (LookupError, sqlite3.Error) as error:
            raise Unreadable(f"the tree over the log cannot be read: {error}") from error


@contextmanager
def opened(folder: Path) -> Iterator[Review]:
    """The log in `folder`, for reading. Raises NoLog, Denied, Unreadable."""
    path = folder / FILE_NAME
    try:
        conn = _connected(path)
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:  # the file is, its folder is not ours
            raise NoLog(f"the log {path} cannot be read: {error}") from error
        is_empty = path.is_file() and not path.stat().st_size
        why = "it is empty: no recorder leaves a log like that" if is_empty else str(error)
        raise Unreadable(f"the log {path} cannot be read: {why}") from error
    with contextlib.closing(conn), _questions(folder, conn) as questions:
        yield Review(conn, questions)


@contextmanager
def _questions(folder: Path, log: sqlite3.Connection) -> Iterator[Questions | None]:
    """To the index, if it is one of this log."""
    try:
        asked = Questions(folder)
    except (sqlite3.Error, TypeError):
        yield None
        return
    with contextlib.closing(asked):
        yield asked if asked.size and asked.leaf == _leaf(log, asked.size - 1) else None


def _leaf(log: sqlite3.Connection, seq: int) -> bytes | None:
    try:
        return tiles_of(log)(0, seq // WIDTH)[seq % WIDTH * HASH_BYTES :][:HASH_BYTES]
    except (LookupError, sqlite3.Error):
        return None


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
        conn.execute("SELECT seq FROM events LIMIT 1").fetchone()
    except sqlite3.Error:
        conn.close()
        raise
    return conn


def _checkpoint(note: str, signed_by: SignedBy | None) -> Checkpoint:
    """Raises Untrue."""
    said = parsed(note.partition("\n\n")[0] + "\n")
    if signed_by is None:
        return said
    for key in signed_by.keys:
        if key.name == said.origin:
            return opened_note(note, key, signed_by.checks)
    raise Untrue(f"it is one of {said.origin}, whose key is none of those that were given")


def _flaw(seq: int, envelope: bytes) -> str:
    """What is wrong with a row whose envelope is the one in the tree."""
    try:
        fields = msgspec.json.decode(envelope)
        if fields.get("seq") != seq or canonical(fields) != envelope:
            return "changed: its envelope is not that of this number"
        Kind(fields.get("kind"))
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError):
        return "changed: its envelope is no event"
    return ""


def _count(made: Counted, event: Fields) -> None:
    facets = facets_of(event)
    if facets.get("outcome") == Outcome.OPEN:
        return
    made.total += 1
    made.hours[hour_of(str(event.get("time"))[:13]), facets.get("kind", ""), facets.get("action", "")] += 1
    for facet in OVERVIEW:
        if facet in facets:
            made.by[facet][facets[facet]] += 1
