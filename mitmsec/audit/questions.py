"""Questions to the index: which events may meet a filter, and how many of each kind there are. Never writes.

    seqs      text ──────────────► words (FTS5), newest first ──┐
              a rare host, app ──► its own index ───────────────┼──► found: all criteria but the exact time
              all else ──────────► hours that have such events ─┘
    counted   time, kind, action ► counts by hour, day and week   (alone: any number of events in milliseconds)
              anything more ─────► as seqs, counted

What is answered holds for the first `size` events; the few behind them readers look through themselves.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from mitmsec.audit.criteria import Facet, Filter, of_host
from mitmsec.audit.event import Kind
from mitmsec.audit.index import ENDED, FILE_NAME, OPEN, VERSION
from mitmsec.audit.indexed import COUNTED, NOTHING, key_of
from mitmsec.audit.spans import hours_of, periods, words_of
from mitmsec.core.model import Value

RARE = 100_000  # events: below it, its own index is the way to a program or host
INDEXES: tuple[Facet, ...] = ("host", "app", "user")
BY_HOUR: tuple[Facet, ...] = ("rule", "outcome", "detector", "severity")  # few values: `counts` has their hours
OVERVIEW: tuple[Facet, ...] = ("app", "host", "kind", "action", "detector", "severity")
COMMON = 500  # events of the newest 25,000
PREFIX_CHARACTERS = 3
AT_ONCE = 10_000  # rows
NO_LIMIT = 1 << 62
NAMED = 200  # of each facet's values, those that most events have


class Condition(Value, frozen=True):
    """A part of WHERE, and what stands for its marks."""

    sql: str
    values: tuple[object, ...] = ()


class Source(Value, frozen=True):
    """Where to look, by what it is in order, and what is asked of it besides."""

    table: str
    order: str
    condition: Condition


class Counted(msgspec.Struct):
    """How many events: all, by facet and text, and by hour (since 1970), kind and action."""

    total: int = 0
    by: dict[Facet, Counter[str]] = msgspec.field(default_factory=lambda: {facet: Counter() for facet in OVERVIEW})
    hours: Counter[tuple[int, str, str]] = msgspec.field(default_factory=Counter)


class Questions:
    """Asks the index in `folder`. Raises sqlite3.Error, at once where there is none that can be asked."""

    def __init__(self, folder: Path) -> None:
        path = quote(str((folder / FILE_NAME).absolute()))
        self._texts = {NOTHING: ""}
        self._conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
        try:
            self._conn.execute("BEGIN")  # one state of it, whatever is added meanwhile
            version, self.size, self.leaf, self._coarse_until = self._conn.execute(
                "SELECT version, size, leaf, coarse_until FROM about"
            ).fetchone()
            if version != VERSION:
                raise sqlite3.DatabaseError("the index is of another version")
        except BaseException:
            self._conn.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        self._conn.close()

    # -- which ---------------------------------------------------------------------------------------------------------
    def of_id(self, text: str) -> list[int]:
        """Numbers of events that may have this id, or be about this connection; in order."""
        rows = self._conn.execute("SELECT seq FROM keys WHERE key = ? ORDER BY seq", (key_of(text),))
        return [seq for (seq,) in rows]

    def seqs(self, wanted: Filter, *, newest_first: bool) -> Iterator[int]:
        """Numbers of the events that may meet `wanted`, in order."""
        conditions = self._conditions(wanted)
        if conditions is None:
            return
        order = "DESC" if newest_first else "ASC"
        for source in self._sources(wanted, newest_first=newest_first):
            where, values = _joined([source.condition, *conditions])
            sql = f"SELECT seq FROM {source.table} WHERE {where} ORDER BY {source.order} {order}"
            for (seq,) in self._conn.execute(sql, values):
                yield seq

    def _sources(self, wanted: Filter, *, newest_first: bool) -> list[Source]:
        """To be looked into one after the other."""
        if wanted.text is not None and (words := self._match(wanted.text)):
            table = "words CROSS JOIN found ON found.seq = words.rowid"
            first, last = _bounds(wanted)
            condition = Condition("words MATCH ? AND words.rowid BETWEEN ? AND ?", (words, first, last))
            return [Source(table, "words.rowid", condition)]
        asked = self._asked(wanted)
        for facet in INDEXES:
            if facet in asked and self._is_rare(facet, asked[facet]):
                return [Source(f"found INDEXED BY by_{facet}", "seq", Condition(f"{facet} > 0"))]
        ranges = self._ranges(wanted)
        if newest_first:
            ranges.reverse()
        return [Source("found NOT INDEXED", "seq", Condition("seq BETWEEN ? AND ?", ends)) for ends in ranges]

    def _match(self, text: str) -> str:
        """What FTS5 is asked for. Words that begin so it puts together first: not, where very many events say one."""
        words = words_of(text)
        asked = [f'"{word}"' for word in words.whole]
        if words.begun and not self._is_common(words.begun) and (not asked or len(words.begun) >= PREFIX_CHARACTERS):
            asked.append(f'"{words.begun}" *')
        return " AND ".join(asked)

    def _is_common(self, word: str) -> bool:
        """Whether many of the newest events say it."""
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?"
        row = self._conn.execute(sql, (f'"{word}"', COMMON)).fetchone()
        return row is not None and int(row[0]) > self.size - 50 * COMMON

    def _is_rare(self, facet: Facet, ids: Sequence[int]) -> bool:
        sql = f"SELECT 1 FROM found INDEXED BY by_{facet} WHERE {facet} > 0 AND {facet} IN {_listed(ids)} LIMIT ?"
        (number,) = self._conn.execute(f"SELECT count(*) FROM ({sql})", (RARE,)).fetchone()
        return int(number) < RARE

    def _ranges(self, wanted: Filter) -> list[tuple[int, int]]:
        """The numbers, in order, of the hours that can have such events."""
        sql, values = "SELECT first, last FROM hours WHERE hour BETWEEN ? AND ?", [*hours_of(wanted)]
        for facet, ids in self._asked(wanted).items():
            if facet in {"kind", "action"}:
                of, column = "", str(facet)
            elif facet in BY_HOUR:
                of, column = str(facet), "value"
            else:
                continue
            with_some = f"SELECT since FROM counts WHERE level_h = 1 AND facet = '{of}' AND {column} IN {_listed(ids)}"
            living = f"SELECT since FROM counts WHERE level_h = 1 AND facet = 'outcome' AND value = {OPEN}"
            sql += f" AND hour IN ({with_some} UNION {living})"  # those are counted by their outcome alone
        merged: list[tuple[int, int]] = []
        lowest, highest = _bounds(wanted)
        for begin, end in self._conn.execute(f"{sql} ORDER BY first", values):
            first, last = max(begin, lowest), min(end, highest)
            if first > last:
                continue
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return merged

    # -- how many ------------------------------------------------------------------------------------------------------
    def counted(self, wanted: Filter) -> Counted:
        """Of the events that meet `wanted`, by whole hours; of each facet the values that most of them have."""
        made, ids = Counted(), {facet: Counter[int]() for facet in OVERVIEW}
        conditions = self._conditions(wanted)
        if conditions is None:
            return made
        hours: Counter[tuple[int, int, int]] = Counter()
        if self._is_counted(wanted):
            self._sum_up(wanted, hours, ids)
        else:
            self._count(wanted, conditions, hours, ids)
        for (hour, kind, action), number in hours.items():
            made.total += number
            ids["kind"][kind] += number
            ids["action"][action] += number
            made.hours[hour, self._text(kind), self._text(action)] += number
        for facet, numbers in ids.items():
            numbers.pop(NOTHING, None)
            made.by[facet].update({self._text(value): number for value, number in numbers.most_common(NAMED)})
        return made

    def volumes(self) -> Counter[tuple[str, str, str]]:
        """Of the connections that have ended, by program and action: how many (""), and bytes `sent` and `received`."""
        sql = (
            "SELECT value, action, sum(total), sum(sent), sum(received) FROM counts"
            " WHERE level_h = ? AND facet = 'app' AND since BETWEEN ? AND ? AND kind = ? GROUP BY value, action"
        )
        made: Counter[tuple[str, str, str]] = Counter()
        (low, high) = self._conn.execute("SELECT min(hour), max(hour) FROM hours").fetchone()
        if low is None:
            return made
        for kind in self._ids("kind", Kind.CONNECTION.value.__eq__):
            for level_h, first, last in periods(low, high, self._coarse_until):
                for app, action, number, sent, received in self._conn.execute(sql, (level_h, first, last, kind)):
                    for what, count in (("", number), ("sent", sent), ("received", received)):
                        made[self._text(app), self._text(action), what] += count
        return made

    def _is_counted(self, wanted: Filter) -> bool:
        """Whether `counts` has the answer."""
        asked = self._asked(wanted).keys() - {"kind", "action"}
        return not asked and (wanted.text, wanted.host, wanted.after, wanted.before) == (None,) * 4

    def _sum_up(self, wanted: Filter, hours: Counter[tuple[int, int, int]], ids: dict[Facet, Counter[int]]) -> None:
        """From what was counted when it was indexed."""
        asked = self._asked(wanted)
        more, _ = _joined([Condition(f"{facet} IN {_listed(asked[facet])}") for facet in asked])
        first_h, last_h = hours_of(wanted)
        sql = (
            "SELECT since, kind, action, total FROM counts"
            f" WHERE level_h = 1 AND facet = '' AND since BETWEEN ? AND ? AND {more}"
        )
        for hour, kind, action, number in self._conn.execute(sql, (first_h, last_h)):
            hours[hour, kind, action] += number
        low, high = min((key[0] for key in hours), default=0), max((key[0] for key in hours), default=-1)
        sql = (
            "SELECT value, sum(total) FROM counts"
            f" WHERE level_h = ? AND facet = ? AND since BETWEEN ? AND ? AND {more} GROUP BY value"
        )
        for facet in OVERVIEW:
            if facet in COUNTED:
                for level_h, first, last in periods(low, high, self._coarse_until):
                    ids[facet].update(dict(self._conn.execute(sql, (level_h, facet, first, last))))

    def _count(
        self,
        wanted: Filter,
        conditions: Sequence[Condition],
        hours: Counter[tuple[int, int, int]],
        ids: dict[Facet, Counter[int]],
    ) -> None:
        """One by one, but by columns: so most of it is done in C."""
        facets: tuple[Facet, ...] = ("app", "host", "detector", "severity")
        for source in self._sources(wanted, newest_first=True):
            where, values = _joined([source.condition, *conditions, Condition(ENDED)])
            sql = f"SELECT hour, kind, action, {', '.join(facets)} FROM {source.table} WHERE {where}"
            rows = self._conn.execute(sql, values)
            while chunk := rows.fetchmany(AT_ONCE):
                columns = list(zip(*chunk, strict=True))
                hours.update(zip(*columns[:3], strict=True))
                for facet, numbers in zip(facets, columns[3:], strict=True):
                    ids[facet].update(numbers)

    def _text(self, number: int) -> str:
        if number not in self._texts:
            row = self._conn.execute("SELECT text FROM names WHERE id = ?", (number,)).fetchone()
            self._texts[number] = row[0] if row else ""
        return self._texts[number]

    # -- criteria ------------------------------------------------------------------------------------------------------
    def _asked(self, wanted: Filter) -> dict[Facet, list[int]]:
        """The numbers of the texts that would do, of each facet that is asked about."""
        tests = wanted.named()
        if wanted.host is not None and of_host(wanted.host).is_address is None:
            tests["host"] = of_host(wanted.host).is_host
        return {facet: self._ids(facet, test) for facet, test in tests.items()}

    def _ids(self, facet: Facet, test: Callable[[str], bool]) -> list[int]:
        rows = self._conn.execute("SELECT id, text FROM names WHERE facet = ?", (facet,))
        return [number for number, text in rows if test(text)]

    def _conditions(self, wanted: Filter) -> list[Condition] | None:
        """What is asked of rows in `found`; None, if none can meet it."""
        asked = self._asked(wanted)
        if not all(asked.values()):
            return None
        conditions = [Condition(f"{facet} IN {_listed(ids)}") for facet, ids in asked.items()]
        if wanted.host is not None and (is_address := of_host(wanted.host).is_address) is not None:
            hosts, addresses = self._ids("host", of_host(wanted.host).is_host), self._ids("address", is_address)
            conditions.append(Condition(f"(host IN {_listed(hosts)} OR address IN {_listed(addresses)})"))
        if wanted.after is not None:
            conditions.append(Condition("seq > ?", (wanted.after,)))
        if wanted.before is not None:
            conditions.append(Condition("seq < ?", (wanted.before,)))
        if wanted.since is not None or wanted.until is not None:
            conditions.append(Condition("hour BETWEEN ? AND ?", hours_of(wanted)))
        return conditions


def _bounds(wanted: Filter) -> tuple[int, int]:
    """The numbers between which events are wanted."""
    first = 0 if wanted.after is None else wanted.after + 1
    return first, NO_LIMIT if wanted.before is None else wanted.before - 1


def _joined(conditions: Sequence[Condition]) -> tuple[str, list[object]]:
    sql = " AND ".join(condition.sql for condition in conditions) or "1"
    return sql, [value for condition in conditions for value in condition.values]


def _listed(ids: Sequence[int]) -> str:
    """As SQL has it; numbers that are too many for marks."""
    return f"({', '.join(map(str, ids))})"
