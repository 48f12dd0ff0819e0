"""Reading the log: which events, one event, and whether the log is whole. Never writes.

A live log is read beside its recorder, in snapshots that do not hold it up. One whose recorder was killed is read as
the recorder would recover it. SQLite may have to make its index of the write-ahead log for that; it gives such a file
the log's own owner, so that reading as root leaves nothing behind that the recorder could not use.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import msgspec
import sqlite_utils

from mitmsec.audit import verifying
from mitmsec.audit.checkpoint import Checkpoint, Checks, LogKey, Untrue, parsed
from mitmsec.audit.checkpoint import opened as opened_note
from mitmsec.audit.envelope import COLUMNS, Fields, canonical, columns_of
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.merkle import consistency, inclusion
from mitmsec.audit.store import FILE_NAME, tiles_of
from mitmsec.audit.verifying import Broken, Entry, Other, Root, Verified
from mitmsec.core.model import Action, Endpoint, Value

TOLD_EVERY = 2048  # events
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
GLOB_SIGNS = frozenset("*?[")
ADDRESS = "json_extract(envelope, '$.remote.address')"


class NoLog(Exception):
    """There is no log here that this user can read; the message says why."""


class Denied(NoLog):
    """The log is not for this user; nothing is known of it."""


class Unreadable(Exception):
    """A row, or the file, is no longer what a recorder writes; `verify` says from where on."""


class Filter(Value, frozen=True):
    """Which events: those that meet every criterion that is not None."""

    kind: Kind | None = None
    app: str | None = None  # part of the executable's path, or a glob over all of it; whatever its case
    host: str | None = None  # a name and what is below it, an address, or a glob over either
    action: Action | None = None
    outcome: Outcome | None = None
    rule: str | None = None  # a rule's name, or a glob over it
    session: str | None = None  # the run
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None  # anywhere in a value, whatever its case
    limit: int | None = None  # the newest so many


def parse_time(text: str, now: datetime) -> datetime:
    """An instant: RFC 3339 (without an offset: local time), or a span before `now` such as 10m or 2h.

    Raises ValueError.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS_S and number.isascii() and number.isdecimal():
        try:
            return now - timedelta(seconds=int(number) * UNITS_S[unit])
        except OverflowError as error:
            raise ValueError(f"{text} ago is before all dates") from error
    return datetime.fromisoformat(text).astimezone(UTC)


class SignedBy(Value, frozen=True):
    """Whose signatures checkpoints must have: one of these keys'."""

    keys: tuple[LogKey, ...]
    checks: Checks


class Review:
    """Questions to one log."""

    def __init__(self, db: sqlite_utils.Database) -> None:
        self._db = db

    def events(self, wanted: Filter) -> Iterator[Fields]:
        """The events that meet `wanted`, oldest first; of more than `limit`, the newest."""
        if wanted.limit is None:
            yield from self._matching(wanted, "ASC")
        else:
            yield from list(islice(self._matching(wanted, "DESC"), wanted.limit))[::-1]

    def _matching(self, wanted: Filter, order: str) -> Iterator[Fields]:
        where, values = _conditions(wanted)
        text = None if wanted.text is None else wanted.text.casefold()
        for row in self._rows(f"SELECT envelope FROM events WHERE {where} ORDER BY seq {order}", values):  # noqa: S608
            event = _parsed(row["envelope"])
            if _meets(event, wanted) and (text is None or _says(event, text)):
                yield event

    def _rows(self, sql: str, values: Sequence[str] = ()) -> Iterator[Fields]:
        try:
            yield from self._db.query(sql, values)
        except sqlite3.Error as error:
            raise Unreadable(f"the log cannot be read: {error}") from error

    def event(self, which: str) -> Fields | None:
        """The event of this id, or of this number; of several with one id, the newest."""
        numeric = which.isascii() and which.isdecimal() and len(which) < 19
        for column in ("seq", "id") if numeric else ("id",):
            sql = f"SELECT envelope FROM events WHERE {column} = ? ORDER BY seq DESC LIMIT 1"  # noqa: S608
            for row in self._rows(sql, [which]):
                return _parsed(row["envelope"])
        return None

    def of_connection(self, connection: str) -> list[Fields]:
        """Everything that was recorded about one connection, oldest first."""
        rows = self._rows("SELECT envelope FROM events WHERE connection = ? ORDER BY seq", [connection])
        return [_parsed(row["envelope"]) for row in rows]

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
        return int(next(self._rows("SELECT count(*) AS size FROM events"))["size"])

    def stats(self) -> list[Fields]:
        """Connections by program and action: how many, bytes each way, and the newest."""
        return list(
            self._rows(
                """
                SELECT app, action, count(*) AS connections, max(time) AS newest,
                       coalesce(sum(json_extract(envelope, '$.bytes.sent')), 0) AS sent,
                       coalesce(sum(json_extract(envelope, '$.bytes.received')), 0) AS received
                FROM events WHERE kind = 'connection' AND id = connection
                GROUP BY app, action ORDER BY connections DESC, app, action
                """
            )
        )

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
            for size, note in self._db.conn.execute("SELECT size, note FROM checkpoints ORDER BY size"):
                try:
                    checkpoint = _checkpoint(str(note), signed_by)
                except Untrue as error:
                    return Broken(max(signed, default=0), f"the checkpoint of {size} events is none: {error}")
                if checkpoint.size != size:
                    return Broken(
                        max(signed, default=0), f"the checkpoint of {size} events is one of {checkpoint.size}"
                    )
                signed[size] = checkpoint.root
            return verifying.verify(self._entries(told), tiles_of(self._db.conn), signed, kept)
        except sqlite3.Error as error:
            return Broken(0, f"unreadable: {error}")

    def _entries(self, told: Callable[[int], None]) -> Iterator[Entry]:
        conn = self._db.conn
        conn.text_factory = bytes  # a changed row need not be text
        try:
            sql = f"SELECT seq, envelope, {', '.join(COLUMNS)} FROM events ORDER BY seq"  # noqa: S608
            for count, (seq, envelope, *columns) in enumerate(conn.execute(sql)):
                if count % TOLD_EVERY == 0:
                    told(count)
                is_text = isinstance(envelope, bytes)
                yield Entry(seq, envelope, _flaw(seq, envelope, columns)) if is_text else Entry(seq, b"")
        finally:
            conn.text_factory = str

    def signers(self) -> list[tuple[int, LogKey]]:
        """Who signs this log's checkpoints, and from which size on, as the log itself says. Raises Unreadable."""
        try:
            return [
                (row["size"], LogKey.parse(row["key"])) for row in self._rows("SELECT * FROM signers ORDER BY size")
            ]
        except ValueError as error:
            raise Unreadable(f"the log cannot be read: {error}") from error

    def note(self, least: int = 0) -> str | None:
        """The newest checkpoint, if it stands for so many events. Raises Unreadable."""
        sql = "SELECT note FROM checkpoints WHERE size >= ? ORDER BY size DESC LIMIT 1"
        return next((str(row["note"]) for row in self._rows(sql, [str(least)])), None)

    def shown_to_include(self, seq: int, size: int) -> list[bytes]:
        """That event `seq` is among the first `size`: hashes, from the leaf up. Raises Unreadable."""
        return self._path(lambda: inclusion(seq, size, tiles_of(self._db.conn)))

    def shown_to_begin_with(self, old: int, new: int) -> list[bytes]:
        """That the first `new` events begin with the first `old`. Raises Unreadable."""
        return self._path(lambda: consistency(old, new, tiles_of(self._db.conn)))

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
    db = sqlite_utils.Database(conn, execute_plugins=False)  # no code of other distributions in here
    try:
        yield Review(db)
    finally:
        db.close()


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


def _conditions(wanted: Filter) -> tuple[str, list[str]]:
    parts: list[tuple[str, str]] = []
    if wanted.kind is not None:
        parts.append(("kind = ?", wanted.kind.value))
    elif wanted.rule is not None:
        parts.append(("kind = ?", Kind.CONNECTION.value))  # only they have one
    if wanted.action is not None:
        parts.append(("action = ?", wanted.action.value))
    if wanted.since is not None:
        parts.append(("time >= ?", _stamp(wanted.since)))
    if wanted.until is not None:
        parts.append(("time < ?", _stamp(wanted.until)))
    if wanted.app is not None:
        how = "lower(app) GLOB lower(?)" if _is_glob(wanted.app) else "instr(lower(app), lower(?)) > 0"
        parts.append((how, wanted.app))
    if wanted.host is not None:
        parts.append(_on_host(wanted.host.lower().lstrip(".")))
    if not parts:
        return "1", []
    conditions, values = zip(*parts, strict=True)
    return " AND ".join(conditions), list(values)


def _on_host(host: str) -> tuple[str, str]:
    """The search column holds the name where there is one; the address then stands in the envelope alone."""
    if _is_glob(host):
        return f"EXISTS (SELECT 1 FROM (SELECT host AS it UNION SELECT {ADDRESS}) WHERE it GLOB ?)", host  # noqa: S608
    try:
        address = Endpoint.of(host.strip("[]"), 0).address
    except ValueError:
        return "'.' || host LIKE ? ESCAPE '\\'", _below(host)
    return f"? IN (host, {ADDRESS})", address


def _is_glob(text: str) -> bool:
    return not GLOB_SIGNS.isdisjoint(text)


def _below(host: str) -> str:
    escaped = host.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%.{escaped}"


def _stamp(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parsed(envelope: str) -> Fields:
    try:
        event: Fields = msgspec.json.decode(envelope)
    except msgspec.DecodeError as error:
        raise Unreadable(f"an event is no longer what was written: {error}") from error
    return event


def _meets(event: Fields, wanted: Filter) -> bool:
    """The criteria for which the log has no search column."""
    return (
        (wanted.session is None or event.get("session") == wanted.session)
        and (wanted.outcome is None or event.get("outcome") == wanted.outcome)
        and (wanted.rule is None or _is_rule(event.get("rule"), wanted.rule))
    )


def _is_rule(rule: object, wanted: str) -> bool:
    return isinstance(rule, str) and (rule == wanted or (_is_glob(wanted) and fnmatchcase(rule, wanted)))


def _says(value: object, text: str) -> bool:
    match value:
        case dict():
            return any(_says(item, text) for item in value.values())
        case list():
            return any(_says(item, text) for item in value)
        case None:
            return False
        case _:
            return text in str(value).casefold()


def _checkpoint(note: str, signed_by: SignedBy | None) -> Checkpoint:
    """Raises Untrue."""
    said = parsed(note.partition("\n\n")[0] + "\n")
    if signed_by is None:
        return said
    for key in signed_by.keys:
        if key.name == said.origin:
            return opened_note(note, key, signed_by.checks)
    raise Untrue(f"it is one of {said.origin}, whose key is none of those that were given")


def _flaw(seq: int, envelope: bytes, columns: list[object]) -> str:
    """What is wrong with a row whose envelope is the one that was chained."""
    try:
        fields = msgspec.json.decode(envelope)
        expected = [item.encode() if isinstance(item, str) else item for item in columns_of(fields)]
        if fields.get("seq") != seq or canonical(fields) != envelope:
            return "changed: its envelope is not that of this number"
    except (msgspec.MsgspecError, AttributeError, KeyError, TypeError):
        return "changed: its envelope is no event"
    return "" if expected == columns else "changed: a search column differs from the envelope"
