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

from mitmsec.audit.checkpoint import Checkpoint, LogKey
from mitmsec.audit.envelope import Draft, sealed
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.recovery import LAST_NAME, LogDamaged, Signer, keep_last, recovered

FILE_NAME = "audit.db"
WAL_KEPT_BYTES = 16 << 20
INSERT = "INSERT INTO events VALUES (?, ?)"
ALL_KEPT, KEPT_EVERY = 128, 4096  # checkpoints: the newest so many, and then one for so many events
THIN_OUT = f"""
DELETE FROM checkpoints WHERE size = (SELECT size FROM checkpoints ORDER BY size DESC LIMIT 1 OFFSET {ALL_KEPT})
AND EXISTS (SELECT 1 FROM checkpoints AS older WHERE older.size < checkpoints.size
            AND older.size / {KEPT_EVERY} = checkpoints.size / {KEPT_EVERY})
"""  # noqa: S608
KEEP_TILE = "INSERT INTO tiles VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET hashes = excluded.hashes"

SCHEMA_VERSION = 3  # how many migrations mitmsec.audit.schema has


class LogUnwritable(Exception):
    """The disk did not take a batch. Nothing of it is in the log; it may be tried again."""


class Store:
    """The log in `folder`, open for appending. One writer at a time; not thread-safe.

    Opening makes or recovers the log. Raises LogDamaged, or LogUnwritable where it cannot be opened.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.path, self._last = folder / FILE_NAME, folder / LAST_NAME
        self._signer, self._packing = signer, Packing()
        try:
            with contextlib.ExitStack() as unless_opened:
                self._conn = _opened(self.path, unless_opened)
                self.tree, self.signed_size = recovered(self._conn, signer, self._packing, self._last)
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
        rows, leaves, note = [], [], ""
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
                note = self._note(tree)
                conn.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (tree.size, note))
                conn.execute(THIN_OUT)
            conn.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                conn.execute("ROLLBACK")
            raise LogUnwritable(f"{self.path}: {error}") from error
        self.tree = tree
        if signs:
            self.signed_size = tree.size
            keep_last(note, self._last)
        return tree

    def _note(self, tree: Tree) -> str:
        key = self._signer.key
        return Checkpoint(key.name, tree.size, tree.root()).signed(key, self._signer.sign)

    def close(self) -> None:
        """Idempotent. Moves the write-ahead log into the file."""
        self._conn.close()


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
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise LogDamaged("it was written by a newer version of mitmsec, which is the one to go on with it")
    from mitmsec.audit.schema import bring_up_to_date

    bring_up_to_date(conn)


def _introduce(conn: sqlite3.Connection, key: LogKey, size: int) -> None:
    """Note who signs from here on."""
    newest = conn.execute("SELECT key FROM signers ORDER BY size DESC, rowid DESC LIMIT 1").fetchone()
    if newest != (str(key),):
        conn.execute("INSERT OR IGNORE INTO signers VALUES (?, ?)", (size, str(key)))
