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

import msgspec
from msgspec.structs import replace

from mitmsec.audit.criteria import Filter, facets_of, meets
from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind, Outcome
from mitmsec.audit.index_check import Compared, compared
from mitmsec.audit.indexed import hour_of
from mitmsec.audit.merkle import HASH_BYTES, WIDTH
from mitmsec.audit.packing import Packing, Unpackable
from mitmsec.audit.proving import Proofs
from mitmsec.audit.questions import OVERVIEW, Counted, Questions
from mitmsec.audit.reading import Unreadable, connected
from mitmsec.audit.recovery import leaf_of

NO_LIMIT = 1 << 62


class Review:
    """Questions to one log."""

    def __init__(
        self, folder: Path, conn: sqlite3.Connection, questions: Questions | None, unread: set[int] | None = None
    ) -> None:
        self._folder, self._conn, self._questions = folder, conn, questions
        self._packing = Packing()
        self.unread = unread
        """Numbers of events that could not be read, and were passed over; None: the first of them raises."""
        self.proofs = Proofs(conn, self._packing)

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
        if after >= self._questions.size - 1:
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
        at: int | None = None
        try:
            for seq, frame in self._rows(sql, (after, before)):
                at = seq
                yield from self._sound(seq, frame)
            return
        except Unreadable:
            if self.unread is None:
                raise
        # behind a page that is damaged each number is looked up by itself: what does not lie on such pages is found
        top = min(before, self._tree_size())
        if newest_first:
            yield from self._numbered(iter(range((top if at is None else at) - 1, after, -1)))
        else:
            yield from self._numbered(iter(range((after if at is None else at) + 1, top)))

    def _numbered(self, seqs: Iterator[int]) -> Iterator[Fields]:
        for seq in seqs:
            try:
                rows = list(self._rows("SELECT envelope FROM events WHERE seq = ?", (seq,)))
            except Unreadable:
                if self.unread is None:
                    raise
                self.unread.add(seq)
                continue
            for (frame,) in rows:
                yield from self._sound(seq, frame)

    def _sound(self, seq: int, frame: object) -> Iterator[Fields]:
        """The event, if it can be read."""
        try:
            event = self._event(seq, frame)
        except Unreadable:
            if self.unread is None:
                raise
            self.unread.add(seq)
            return
        yield event

    def _tree_size(self) -> int:
        """How many events the tree over the log has."""
        rows = self._rows("SELECT number, length(hashes) FROM tiles WHERE level = 0 ORDER BY number DESC LIMIT 1")
        return next((number * WIDTH + length // HASH_BYTES for number, length in rows), 0)

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
        except (Unpackable, msgspec.DecodeError, RecursionError) as error:
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
            if self.unread:
                return None
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
        if wanted.text is not None:  # what the index finds by words has to be looked at
            for event in self._matching(replace(wanted, limit=None), newest_first=False):
                _count(made, event)
            return made
        if self._questions is not None:
            (made,) = self._asked(lambda asks: iter([asks.counted(wanted)]))
        after = max(self.indexed_size - 1, -1 if wanted.after is None else wanted.after)
        for event in self._matching(replace(wanted, after=after), newest_first=False):
            _count(made, event)
        return made

    def compared_index(self, told: Callable[[int], None] = lambda seq: None) -> Compared | None:
        """Whether the index is the one that the log makes; None, if searches ask none."""
        return None if self._questions is None else compared(self._folder, self._conn, told)

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


@contextmanager
def opened(folder: Path, *, skips: bool = False) -> Iterator[Review]:
    """The log in `folder`, for reading. Raises NoLog, Denied, Unreadable.

    `skips`: events that cannot be read are passed over, and their numbers are in `unread`.
    """
    with contextlib.closing(connected(folder)) as conn, _questions(folder, conn) as questions:
        yield Review(folder, conn, questions, set() if skips else None)


@contextmanager
def _questions(folder: Path, log: sqlite3.Connection) -> Iterator[Questions | None]:
    """To the index, if it is one of this log."""
    try:
        asked = Questions(folder)
    except (sqlite3.Error, TypeError):
        yield None
        return
    with contextlib.closing(asked):
        yield asked if _is_of(asked, log) else None


def _is_of(asked: Questions, log: sqlite3.Connection) -> bool:
    try:
        return bool(asked.size > 0 and asked.leaf == leaf_of(log, asked.size - 1))
    except sqlite3.Error:
        return False


def _count(made: Counted, event: Fields) -> None:
    facets = facets_of(event)
    if facets.get("outcome") == Outcome.OPEN:
        return
    made.total += 1
    made.hours[hour_of(str(event.get("time"))[:13]), facets.get("kind", ""), facets.get("action", "")] += 1
    for facet in OVERVIEW:
        if facet in facets:
            made.by[facet][facets[facet]] += 1
