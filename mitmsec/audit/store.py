"""The log on disk: SQLite, appended to by one process in whole batches, each durable before `append` returns.

    append([draft, …]) ── number, seal, hash ── one transaction (WAL, synchronous=FULL) ── fsync ──► Tree
                              events │ tiles that grew │ now and then a signed checkpoint

A row of `events` is its number and its packed envelope (mitmsec.audit.packing); what searches need is made of these,
elsewhere (mitmsec.audit.index). `tiles` holds the tree over all envelopes (mitmsec.audit.merkle), `checkpoints` the
signed notes that were made of it, `signers` who signs from which size on. A batch that fails leaves nothing behind and
may be tried again. mitmsec.audit.schema makes the tables, through sqlite-utils; the append is plain executemany,
several times faster.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mitmsec.audit.checkpoint import Checkpoint, LogKey, Untrue, parsed
from mitmsec.audit.envelope import Draft, sealed
from mitmsec.audit.merkle import HASH_BYTES, Tiles, Tree, leaf_hash, tree_of
from mitmsec.audit.packing import Packing, Unpackable

FILE_NAME = "audit.db"
WAL_KEPT_BYTES = 16 << 20
INSERT = "INSERT INTO events VALUES (?, ?)"
KEEP_TILE = "INSERT INTO tiles VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET hashes = excluded.hashes"

SCHEMA_VERSION = 3  # how many migrations mitmsec.audit.schema has


class LogDamaged(Exception):
    """What is on disk is no log, or its end is not what the tree over it says; nothing can be appended to it."""


class LogUnwritable(Exception):
    """The disk did not take a batch. Nothing of it is in the log; it may be tried again."""


class Signer(Protocol):
    """Signs this log's checkpoints."""

    @property
    def key(self) -> LogKey: ...

    def sign(self, message: bytes) -> bytes: ...


class Store:
    """The log in `folder`, open for appending. One writer at a time; not thread-safe.

    Opening makes or recovers the log. Raises LogDamaged, or LogUnwritable where it cannot be opened.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.path, self._signer, self._packing = folder / FILE_NAME, signer, Packing()
        try:
            with contextlib.ExitStack() as unless_opened:
                self._conn = _opened(self.path, unless_opened)
                self.tree = _tree(self._conn, self._packing)
                self.signed_size = _signed_size(self._conn, self.tree)
                _introduce(self._conn, signer.key, self.tree.size)
                unless_opened.pop_all()
        except (sqlite3.OperationalError, OSError) as error:
            raise LogUnwritable(f"{self.path}: {error}") from error
        except sqlite3.Error as error:  # no database, or one whose pages contradict each other
            raise LogDamaged(f"{self.path}: {error}") from error

    def append(self, drafts: Sequence[Draft], *, signs: bool = False) -> Tree:
        """Number and append `drafts`, in order. They are on disk when this returns. Raises LogUnwritable.

        `signs`: with a checkpoint of all that the log has then.
        """
        rows, leaves = [], []
        for seq, draft in enumerate(drafts, self.tree.size):
            envelope = sealed(draft, seq)[1]
            leaves.append(leaf_hash(envelope))
            rows.append((seq, self._packing.packed(envelope)))
        tree, tiles = self.tree.grown(leaves)
        conn = self._conn
        try:
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany(INSERT, rows)
            conn.executemany(KEEP_TILE, [(tile.level, tile.number, tile.hashes) for tile in tiles])
            if signs:
                conn.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (tree.size, self._note(tree)))
            conn.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
            raise LogUnwritable(f"{self.path}: {error}") from error
        self.tree = tree
        if signs:
            self.signed_size = tree.size
        return tree

    def _note(self, tree: Tree) -> str:
        key = self._signer.key
        return Checkpoint(key.name, tree.size, tree.root()).signed(key, self._signer.sign)

    def close(self) -> None:
        """Idempotent. Moves the write-ahead log into the file."""
        self._conn.close()


def tiles_of(conn: sqlite3.Connection) -> Tiles:
    """Those in the log."""

    def tile(level: int, number: int) -> bytes:
        row = conn.execute("SELECT hashes FROM tiles WHERE level = ? AND number = ?", (level, number)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise LookupError(f"tile {number} of level {level} is not in the log")
        return row[0]

    return tile


def _opened(path: Path, unless_opened: contextlib.ExitStack) -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o640))
    conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    unless_opened.callback(conn.close)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    _made(conn)
    folder = os.open(path.parent, os.O_RDONLY)  # the file's name must survive a power cut as well
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return conn


def _made(conn: sqlite3.Connection) -> None:
    """The tables are there, as this version wants them."""
    if conn.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        return
    from mitmsec.audit.schema import bring_up_to_date

    bring_up_to_date(conn)


def _tree(conn: sqlite3.Connection, packing: Packing) -> Tree:
    """The tree to go on from, once it is shown that its last leaf is the last row's."""
    count, top = conn.execute("SELECT count(*), max(seq) FROM events").fetchone()
    if count == 0 and conn.execute("SELECT count(*) FROM tiles").fetchone() != (0,):
        raise LogDamaged("its events are gone, the tree over them is there")
    if count == 0:
        return Tree()
    if top != count - 1:
        raise LogDamaged(f"it has {count} events, the last of which is number {top}")
    (frame,) = conn.execute("SELECT envelope FROM events WHERE seq = ?", (top,)).fetchone()
    tiles = tiles_of(conn)
    try:
        tree = tree_of(count, tiles)
        at = (top % 256) * HASH_BYTES
        is_last = tiles(0, top // 256)[at:] == leaf_hash(packing.unpacked(frame))
    except LookupError as error:
        raise LogDamaged(f"the tree over its events is not whole: {error}") from error
    except Unpackable as error:
        raise LogDamaged(f"its last event, number {top}, cannot be read: {error}") from error
    if not is_last:
        raise LogDamaged(f"its last event, number {top}, is not what the tree over it ends with")
    return tree


def _signed_size(conn: sqlite3.Connection, tree: Tree) -> int:
    """How many events the newest checkpoint stands for, once it is shown that it is one of this tree."""
    row = conn.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        return 0
    try:
        checkpoint = parsed(str(row[1]).partition("\n\n")[0] + "\n")
        root = tree_of(checkpoint.size, tiles_of(conn)).root()
    except (Untrue, LookupError) as error:
        raise LogDamaged(f"its newest checkpoint does not fit: {error}") from error
    if checkpoint.size != row[0] or checkpoint.size > tree.size or checkpoint.root != root:
        raise LogDamaged(f"its newest checkpoint, of {row[0]} events, is not of these events")
    return checkpoint.size


def _introduce(conn: sqlite3.Connection, key: LogKey, size: int) -> None:
    """Note who signs from here on."""
    newest = conn.execute("SELECT key FROM signers ORDER BY size DESC LIMIT 1").fetchone()
    if newest != (str(key),):
        conn.execute("INSERT OR REPLACE INTO signers VALUES (?, ?)", (size, str(key)))
