"""The log's tables, made and brought up to date by sqlite-utils; each migration is applied once and noted in the log.

To import sqlite-utils takes longer than all else that a recorder does to begin, so the store asks for this module only
where the log is new, or older than `store.SCHEMA_VERSION`: the number of migrations here.
"""

from __future__ import annotations

import hashlib
import sqlite3

import sqlite_utils
from sqlite_utils import Migrations

from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.store import INSERT, KEEP_TILE

BATCH = 4096  # events
COLUMNS = ("id", "time", "kind", "connection", "app", "host", "action")  # of versions 1 and 2

migrations = Migrations("mitmsec.audit")


@migrations()
def events(db: sqlite_utils.Database) -> None:
    """The first schema."""
    table = db.table("events")
    table.create(
        {"seq": int, **dict.fromkeys(COLUMNS, str), "envelope": str, "head": bytes},
        pk="seq",
        not_null={"id", "time", "kind", "envelope", "head"},
    )
    for column in ("id", "time", "kind"):
        table.create_index([column])
    for column in ("connection", "app", "host", "action"):
        db.execute(f"CREATE INDEX idx_events_{column} ON events ({column}) WHERE {column} IS NOT NULL")


@migrations()
def tiles(db: sqlite_utils.Database) -> None:
    """A tree over all events in place of a chain; what was chained is looked through once more, and becomes its leaves.

    Raises sqlite3.DatabaseError where the chain is broken: nobody should sign what has been changed.
    """
    conn = db.conn
    conn.execute(
        "CREATE TABLE tiles (level INTEGER, number INTEGER, hashes BLOB NOT NULL, PRIMARY KEY (level, number))"
    )
    conn.execute("CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL)")
    conn.execute("CREATE TABLE signers (size INTEGER PRIMARY KEY, key TEXT NOT NULL)")
    tree, head = Tree(), hashlib.sha256(b"").digest()
    rows = conn.execute("SELECT seq, envelope, head FROM events ORDER BY seq")
    while batch := rows.fetchmany(BATCH):
        leaves = []
        for seq, envelope, chained in batch:
            leaves.append(leaf_hash(str(envelope).encode()))
            head = hashlib.sha256(b"\x01" + head + leaves[-1]).digest()
            if seq != tree.size + len(leaves) - 1 or chained != head:
                raise sqlite3.DatabaseError(f"event {seq} does not follow from the events before it")
        tree, grown = tree.grown(leaves)
        conn.executemany(KEEP_TILE, [(tile.level, tile.number, tile.hashes) for tile in grown])
    conn.execute("ALTER TABLE events DROP COLUMN head")


@migrations()
def packed(db: sqlite_utils.Database) -> None:
    """Events are number and packed envelope; what they are found by is in the index, a file of its own."""
    conn, packing = db.conn, Packing()
    conn.execute("ALTER TABLE events RENAME TO unpacked")
    conn.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, envelope BLOB)")
    rows = conn.execute("SELECT seq, envelope FROM unpacked ORDER BY seq")
    while batch := rows.fetchmany(BATCH):
        conn.executemany(INSERT, [(seq, packing.packed(str(envelope).encode())) for seq, envelope in batch])
    conn.execute("DROP TABLE unpacked")
    conn.execute("ALTER TABLE signers RENAME TO before")
    conn.execute("CREATE TABLE signers (size INTEGER, key TEXT NOT NULL, PRIMARY KEY (size, key))")
    conn.execute("INSERT INTO signers SELECT size, key FROM before ORDER BY size")
    conn.execute("DROP TABLE before")


def bring_up_to_date(conn: sqlite3.Connection) -> int:
    """Applies what has not been applied; the version that the log has now. Raises sqlite3.OperationalError."""
    db = sqlite_utils.Database(conn, execute_plugins=False)  # no code of other distributions in here
    migrations.apply(db)
    version = len(migrations.applied(db))
    conn.execute(f"PRAGMA user_version = {version}")
    return version
