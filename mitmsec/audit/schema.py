"""The log's tables, made and brought up to date by sqlite-utils; each migration is applied once and noted in the log.

To import sqlite-utils takes longer than all else that a recorder does to begin, so the store asks for this module only
where the log is new, or older than `store.SCHEMA_VERSION`: the number of migrations here.
"""

from __future__ import annotations

import sqlite3

import sqlite_utils
from sqlite_utils import Migrations

from mitmsec.audit.envelope import COLUMNS

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


def bring_up_to_date(conn: sqlite3.Connection) -> int:
    """Applies what has not been applied; the version that the log has now. Raises sqlite3.OperationalError."""
    db = sqlite_utils.Database(conn, execute_plugins=False)  # no code of other distributions in here
    migrations.apply(db)
    version = len(migrations.applied(db))
    conn.execute(f"PRAGMA user_version = {version}")
    return version
