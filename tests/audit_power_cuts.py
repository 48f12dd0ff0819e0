"""Power cuts under a real Store: only what was synced is left, and of the rest a random, torn part.

    Store ──► Connection (APSW, as the store uses sqlite3) ──► Disk (a VFS) ──► what each file had at its last sync
                                                                          └──► writes since, any of which may be left

The store's own statements run, and its own answer says what is acknowledged. Another library than Python's sqlite3
runs them, and it is SQLite all the same; what was left is opened by the real store, with sqlite3. That a name in the
folder is lost is not tried: the store syncs the folder before it appends.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
from audit_events import SIGNER, connection, draft

from mitmsec.audit import store as storing
from mitmsec.audit.criteria import Filter
from mitmsec.audit.recovery import LAST_NAME, LogDamaged
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME, LogUnwritable, Store
from mitmsec.audit.verifying import Verified

type Write = tuple[int, bytes | None]
"""At an offset; None cuts the file off there."""


class Disk(apsw.VFS):
    """What is on it for certain, and what may be, by the files' names."""

    def __init__(self) -> None:
        self.synced: dict[str, bytearray] = {}
        self.written: dict[str, list[Write]] = {}
        super().__init__("cut", "")

    def xOpen(self, name: Any, flags: Any) -> Any:  # noqa: N802
        return _File(self, name, flags)

    def xDelete(self, name: str, syncs: bool) -> None:  # noqa: N802
        super().xDelete(name, syncs)
        self.synced.pop(Path(name).name, None)
        self.written.pop(Path(name).name, None)

    def left(self, chance: random.Random) -> Iterator[tuple[str, bytes]]:
        """After a power cut."""
        for name, synced in self.synced.items():
            content, how = bytearray(synced), chance.choice(["none", "some", "torn", "all"])
            _applied(content, [_torn(one, chance, how) for one in self.written[name] if _is_left(chance, how)])
            yield name, bytes(content)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: Any) -> None:
        self._disk = disk
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "temporary").name
        if flags[0] & apsw.SQLITE_OPEN_WAL and not self._name.endswith("-wal"):
            self._name += "-wal"
        super().__init__("", name, flags)
        disk.synced.setdefault(self._name, bytearray())
        disk.written.setdefault(self._name, [])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._disk.written[self._name].append((offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        self._disk.written[self._name].append((size, None))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        _applied(self._disk.synced[self._name], self._disk.written[self._name])
        self._disk.written[self._name].clear()


def _applied(content: bytearray, writes: Iterable[Write]) -> None:
    for offset, data in writes:
        if data is None:
            del content[offset:]
        else:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data


def _is_left(chance: random.Random, how: str) -> bool:
    return how == "all" or (how != "none" and chance.random() < 0.5)


def _torn(write: Write, chance: random.Random, how: str) -> Write:
    offset, data = write
    return (offset, data if data is None or how != "torn" else data[: chance.randrange(len(data) + 1)])


class Connection:
    """APSW as the store uses sqlite3: the same statements, and sqlite3's errors."""

    def __init__(self, path: Path) -> None:
        self._conn = apsw.Connection(str(path), vfs="cut")

    def execute(self, sql: str, values: Any = ()) -> Any:
        with _as_sqlite3():
            return _Rows(self._conn.execute(sql, values))

    def executemany(self, sql: str, rows: Any) -> None:
        with _as_sqlite3():
            self._conn.executemany(sql, rows)

    def close(self) -> None:
        self._conn.close()


class _Rows:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def fetchone(self) -> Any:
        return next(self._cursor, None)


@contextmanager
def _as_sqlite3() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise sqlite3.OperationalError(str(error)) from error


class Figures(msgspec.Struct):
    """Of many cuts."""

    cuts: int = 0
    acknowledged: int = 0
    lost: int = 0
    refused: int = 0
    wrong: int = 0


def cut(folder: Path, seed: int, figures: Figures, synchronous: str = "FULL") -> None:
    """One life of a log that a power cut ends, and the next one. `synchronous`: another than the store's own."""
    chance, disk, after = random.Random(seed), Disk(), folder / "after"
    (before := folder / "before").mkdir()
    after.mkdir()
    Store(before, SIGNER).close()  # sqlite-utils makes the tables, and wants sqlite3
    disk.synced[FILE_NAME], disk.written[FILE_NAME] = bytearray((before / FILE_NAME).read_bytes()), []
    store, notes = _over(disk, before), [b""]
    store._conn.execute(f"PRAGMA synchronous = {synchronous}")
    store._conn.execute(f"PRAGMA wal_autocheckpoint = {chance.choice([4, 20, 60])}")
    for _ in range(chance.randrange(1, 40)):
        store.append(_some(chance, store.tree.size), signs=chance.random() < 0.4)
        if (before / LAST_NAME).exists():
            notes.append((before / LAST_NAME).read_bytes())
    acknowledged = store.tree.size
    for name, content in disk.left(chance):
        if not name.endswith("-shm"):
            (after / name).write_bytes(content)
    note = chance.choice([notes[-1], notes[-1], *notes[-2:], notes[-1][: chance.randrange(len(notes[-1]) + 1)], b""])
    if chance.random() < 0.9:  # it is written, and renamed, without a sync
        (after / LAST_NAME).write_bytes(note)
    store.close()
    disk.unregister()
    figures.cuts += 1
    figures.acknowledged += acknowledged
    _gone_on(after, acknowledged, figures)


def _some(chance: random.Random, size: int) -> list[Any]:
    return [draft(connection(f"flow-{size + number}")) for number in range(chance.randrange(1, 20))]


def _over(disk: Disk, folder: Path) -> Store:
    """A store whose SQLite writes to that disk."""

    def connected(path: Path, **options: object) -> Any:
        return Connection(path)

    real, storing.sqlite3 = storing.sqlite3, _Sqlite3(connected)  # type: ignore[assignment]
    try:
        return Store(folder, SIGNER)
    finally:
        storing.sqlite3 = real


class _Sqlite3:
    def __init__(self, connect: object) -> None:
        self.connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)


def _gone_on(folder: Path, acknowledged: int, figures: Figures) -> None:
    try:
        store = Store(folder, SIGNER)
    except (LogDamaged, LogUnwritable):
        figures.refused += 1
        return
    with contextlib.closing(store):
        figures.lost += max(0, acknowledged - store.tree.size)
        store.append([draft(connection("after"))], signs=True)
    with opened(folder) as log:
        seqs = [event["seq"] for event in log.events(Filter())]
        is_whole = isinstance(log.proofs.verify(), Verified) and seqs == list(range(len(seqs)))
        figures.wrong += not is_whole
