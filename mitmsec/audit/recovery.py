"""Whether a log can be gone on with: its end, its tree, its newest checkpoint, and what was last signed of it.

A recorder signs what it appends to. So before it does, it wants the end of the log to be the end of its tree, the
newest checkpoint to be signed, by the key that it says and of these events, and the log not to have fewer events, or
others, than when the last checkpoint was made here: that note lies beside the key, apart from the log.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Protocol

from mitmsec.audit.checkpoint import Checkpoint, LogKey, Untrue, opened, said_by
from mitmsec.audit.merkle import HASH_BYTES, HEIGHT, WIDTH, Tiles, Tree, leaf_hash, tree_of
from mitmsec.audit.packing import Packing, Unpackable

LAST_NAME = "checkpoint.last"
LAST_LIMIT_BYTES = 65_536
TABLES = frozenset({"events", "tiles", "checkpoints", "signers"})


class LogDamaged(Exception):
    """What is on disk is no log, or its end is not what the tree over it says; nothing can be appended to it."""


class Signer(Protocol):
    """Signs this log's checkpoints."""

    @property
    def key(self) -> LogKey: ...

    def sign(self, message: bytes) -> bytes: ...

    def checks(self, public: bytes, message: bytes, signature: bytes) -> bool: ...


def tiles_of(conn: sqlite3.Connection) -> Tiles:
    """Those in the log."""

    def tile(level: int, number: int) -> bytes:
        row = conn.execute("SELECT hashes FROM tiles WHERE level = ? AND number = ?", (level, number)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise LookupError(f"tile {number} of level {level} is not in the log")
        return row[0]

    return tile


def leaf_of(log: sqlite3.Connection, seq: int) -> bytes:
    """The hash of one event, as the tree over the log has it; empty, if it has none."""
    try:
        tile = tiles_of(log)(0, seq // WIDTH)
    except LookupError:
        return b""
    return tile[seq % WIDTH * HASH_BYTES :][:HASH_BYTES]


def flaw_of_tables(conn: sqlite3.Connection) -> str:
    """What is wrong with the file as a log; empty, if nothing is. A view is computed as its author wants."""
    kinds = dict(conn.execute("SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view', 'trigger')"))
    missing = sorted(TABLES - kinds.keys())
    if missing:
        return f"it has no table {missing[0]}"
    strange = sorted(name for name, kind in kinds.items() if kind != "table")
    return f"it has a {kinds[strange[0]]}, {strange[0]}, and logs have none" if strange else ""


def recovered(conn: sqlite3.Connection, signer: Signer, packing: Packing, last: Path) -> tuple[Tree, int]:
    """The tree to go on from, and how many events its newest checkpoint stands for. Raises LogDamaged."""
    if flaw := flaw_of_tables(conn):
        raise LogDamaged(flaw)
    tree = _tree(conn, packing)
    keys = [signer.key, *_keys(conn)]
    _is_not_rolled_back(conn, tree, keys, last)
    return tree, _signed_size(conn, tree, keys, signer)


def keep_last(note: str, last: Path) -> None:
    """After it has been committed: it is never ahead of the log. A disk that does not take it keeps the one before."""
    temporary = last.with_name(last.name + ".new")
    with contextlib.suppress(OSError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(note)
        temporary.rename(last)


def _tree(conn: sqlite3.Connection, packing: Packing) -> Tree:
    """Shown to end with the last row, and to have nothing behind that."""
    count, top = conn.execute("SELECT count(*), max(seq) FROM events").fetchone()
    tiles, tree = tiles_of(conn), Tree()
    if count and top != count - 1:
        raise LogDamaged(f"it has {count} events, the last of which is number {top}")
    try:
        tree = tree_of(count, tiles)
        if count:
            (frame,) = conn.execute("SELECT envelope FROM events WHERE seq = ?", (top,)).fetchone()
            at = (top % WIDTH) * HASH_BYTES
            is_last = tiles(0, top // WIDTH)[at:] == leaf_hash(packing.unpacked(frame))
            if not is_last:
                raise LogDamaged(f"its last event, number {top}, is not what the tree over it ends with")
    except LookupError as error:
        raise LogDamaged(f"the tree over its events is not whole: {error}") from error
    except Unpackable as error:
        raise LogDamaged(f"its last event, number {top}, cannot be read: {error}") from error
    for level, hashes in enumerate((*tree.edge, b"")):
        behind = (tree.size >> HEIGHT * (level + 1)) + (1 if hashes else 0)
        if conn.execute("SELECT 1 FROM tiles WHERE level = ? AND number >= ?", (level, behind)).fetchone():
            raise LogDamaged(f"events are gone: it has {count}, and the tree over them has more")
    return tree


def _keys(conn: sqlite3.Connection) -> list[LogKey]:
    try:
        return [LogKey.parse(str(key)) for (key,) in conn.execute("SELECT key FROM signers")]
    except ValueError as error:
        raise LogDamaged(f"who signed it cannot be read: {error}") from error


def _signed_size(conn: sqlite3.Connection, tree: Tree, keys: list[LogKey], signer: Signer) -> int:
    """How many events the newest checkpoint stands for, once it is shown that it is signed, and of this tree."""
    row = conn.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        return 0
    size, note = row
    try:
        checkpoint = said_by(str(note))
        by = next((key for key in keys if key.name == checkpoint.origin), None)
        if by is None:
            raise Untrue(f"it is one of {checkpoint.origin}, who has never signed this log")
        opened(str(note), by, signer.checks)
    except Untrue as error:
        raise LogDamaged(f"its newest checkpoint does not fit: {error}") from error
    if checkpoint.size != size or not _is_of(conn, tree, checkpoint):
        raise LogDamaged(f"its newest checkpoint, of {size} events, is not of these events")
    return checkpoint.size


def _is_not_rolled_back(conn: sqlite3.Connection, tree: Tree, keys: list[LogKey], last: Path) -> None:
    """It has the events that it had when this recorder's last checkpoint was made."""
    try:
        checkpoint = said_by(last.read_bytes()[:LAST_LIMIT_BYTES].decode())
    except (FileNotFoundError, Untrue, UnicodeDecodeError):
        return
    if checkpoint.origin not in {key.name for key in keys}:
        return  # it is another log's, which was here before
    if not _is_of(conn, tree, checkpoint):
        raise LogDamaged(
            f"it does not have the {checkpoint.size} events that it had when it was last signed here. If it was"
            f" restored from a backup, move {last} away, which says so"
        )


def _is_of(conn: sqlite3.Connection, tree: Tree, checkpoint: Checkpoint) -> bool:
    try:
        return checkpoint.size <= tree.size and tree_of(checkpoint.size, tiles_of(conn)).root() == checkpoint.root
    except LookupError:
        return False
