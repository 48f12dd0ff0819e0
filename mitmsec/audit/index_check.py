"""Whether the index says of a log what it should: another one is made of the log, elsewhere, and held against it."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from mitmsec.audit.criteria import FACETS
from mitmsec.audit.following import CHUNK, numbered
from mitmsec.audit.index import FILE_NAME, VERSION, Index
from mitmsec.audit.packing import Packing
from mitmsec.core.model import Value

_NAME = "(SELECT text FROM {0}.names WHERE id = {1})"
COMPARED = {
    "found": ("seq", "hour", *FACETS, "sent", "received"),
    "keys": ("key", "seq"),
    "counts": ("level_h", "facet", "since", "value", "kind", "action", "total", "sent", "received"),
    "hours": ("hour", "first", "last"),
}
NAMED = frozenset[str]({*FACETS, "value"})


class Compared(Value, frozen=True):
    """Of how many events the index says what it should; `why`, where it does not."""

    size: int
    why: str = ""


def compared(folder: Path, log: sqlite3.Connection, told: Callable[[int], None] = lambda seq: None) -> Compared | None:
    """The index in `folder` with one made of `log`; None, if there is none that searches would ask.

    `told(seq)` is called now and then. Raises OSError where there is no room for another index.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    with tempfile.TemporaryDirectory(prefix="mitmsec-index-") as made:
        try:
            with contextlib.closing(_opened(path)) as conn:
                version, size, coarse_size = conn.execute("SELECT version, size, coarse_size FROM about").fetchone()
                if version != VERSION:
                    return None
                _make(Path(made), log, (coarse_size, size), told)
                conn.execute("ATTACH ? AS made", (f"file:{quote(made)}/{FILE_NAME}?mode=ro",))
                return Compared(size, _difference(conn))
        except (sqlite3.Error, TypeError, ValueError) as error:
            return Compared(0, f"it cannot be read: {error}")


def _opened(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    conn.execute("PRAGMA trusted_schema = OFF")
    conn.execute("BEGIN")
    return conn


def _make(folder: Path, log: sqlite3.Connection, sizes: tuple[int, int], told: Callable[[int], None]) -> None:
    index, packing = Index(folder), Packing()
    sql = "SELECT seq, envelope FROM events WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
    with contextlib.closing(index):
        for until in sizes:
            while rows := log.execute(sql, (index.size, until, CHUNK)).fetchall():
                told(index.size)
                index.add(numbered(rows, packing), rows[-1][0] + 1, b"")
            if until == sizes[0] and until:
                index.count_coarsely()


def _difference(conn: sqlite3.Connection) -> str:
    schemas = [conn.execute(f"SELECT type, name, sql FROM {of}.sqlite_schema ORDER BY name").fetchall() for of in BOTH]
    if schemas[0] != schemas[1]:
        return "it has other tables, or other indexes of them, than it should"
    for (flaw,) in conn.execute("PRAGMA main.integrity_check(1)"):
        if flaw != "ok":
            return f"it contradicts itself: {flaw}"
    for table, columns in COMPARED.items():
        if row := _first(conn, *(_selected(table, columns, of) for of in BOTH)):
            return f"it is changed: {table}, {columns[0]} {row[0]}"
    for of in BOTH:
        conn.execute(f"CREATE VIRTUAL TABLE temp.said_{of} USING fts5vocab({of}, words, instance)")
    if row := _first(conn, *(f"SELECT term, doc FROM temp.said_{of}" for of in BOTH)):
        return f"it is changed: event {row[1]} does not say {row[0]!r}, or is not found by it"
    return ""


BOTH = ("main", "made")


def _selected(table: str, columns: tuple[str, ...], of: str) -> str:
    shown = ", ".join(_NAME.format(of, column) if column in NAMED else column for column in columns)
    return f"SELECT {shown} FROM {of}.{table}"


def _first(conn: sqlite3.Connection, one: str, other: str) -> tuple[object, ...] | None:
    """A row that only one of them has."""
    for here, there in ((one, other), (other, one)):
        row: tuple[object, ...] | None = conn.execute(f"SELECT * FROM ({here} EXCEPT {there}) LIMIT 1").fetchone()
        if row is not None:
            return row
    return None
