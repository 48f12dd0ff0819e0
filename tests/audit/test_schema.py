"""Tables: made by sqlite-utils, once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlite_utils
from audit_events import connection, draft, store_in

from mitmsec.audit import schema, store
from mitmsec.audit.envelope import sealed
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.recovery import LogDamaged
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME
from mitmsec.audit.verifying import Root, Verified

BEGIN = """
import sys
from pathlib import Path
from mitmsec.audit.store import Store
from mitmsec.seal import LogSigner
Store(Path(sys.argv[1]), LogSigner('a', bytes(32))).close()
print("sqlite_utils" in sys.modules)
"""


def begun(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", BEGIN, folder], capture_output=True, text=True, env=dict(os.environ))
    return done.stdout + done.stderr


def test_the_store_knows_how_many_migrations_there_are(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "new.db")
    assert schema.bring_up_to_date(conn) == store.SCHEMA_VERSION
    assert schema.bring_up_to_date(conn) == store.SCHEMA_VERSION
    conn.close()


def test_a_log_that_is_up_to_date_is_gone_on_with_at_once(tmp_path: Path) -> None:
    assert begun(tmp_path) == "True\n"
    assert begun(tmp_path) == "False\n"


def test_a_log_that_an_earlier_version_made_is_brought_up_to_date_once(tmp_path: Path) -> None:
    """Those had no number, but the notes that sqlite-utils makes."""
    store_in(tmp_path).close()
    conn = sqlite3.connect(tmp_path / FILE_NAME)
    conn.execute("PRAGMA user_version = 0")
    conn.close()
    assert begun(tmp_path) == "True\n"
    assert begun(tmp_path) == "False\n"


def of_version_1(folder: Path, events: int) -> list[bytes]:
    """A log as it was before it had a tree: each event with the head of a chain over it."""
    conn = sqlite3.connect(folder / FILE_NAME, isolation_level=None)
    schema.migrations.apply(sqlite_utils.Database(conn), stop_before="tiles")
    head, envelopes = hashlib.sha256(b"").digest(), []
    columns = [row[1] for row in conn.execute("PRAGMA table_info(events)")]
    for seq in range(events):
        fields, envelope = sealed(draft(connection(f"flow-{seq}")), seq)
        head = hashlib.sha256(b"\x01" + head + leaf_hash(envelope)).digest()
        row = (seq, fields["id"], fields["time"], fields["kind"], *[None] * 4, envelope.decode(), head)
        conn.execute(f"INSERT INTO events ({', '.join(columns)}) VALUES ({', '.join('?' * len(row))})", row)
        envelopes.append(envelope)
    conn.execute("PRAGMA user_version = 1")
    conn.close()
    return envelopes


def test_a_log_with_a_chain_gets_a_tree_over_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "BATCH", 100)
    envelopes = of_version_1(tmp_path, 700)
    made = store_in(tmp_path)
    assert made.tree == Tree().grown([leaf_hash(envelope) for envelope in envelopes])[0]
    made.append([draft(connection("the next"))])
    root = Root(made.tree.size, made.tree.root())
    made.close()
    with opened(tmp_path) as log:
        assert log.proofs.verify(root) == Verified(root, None, 0)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET envelope = replace(envelope, 'curl', 'wget') WHERE seq = 3",
        "UPDATE events SET head = zeroblob(32) WHERE seq = 3",
        "DELETE FROM events WHERE seq = 3",
    ],
)
def test_a_broken_chain_gets_no_tree(tmp_path: Path, change: str) -> None:
    of_version_1(tmp_path, 9)
    conn = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    conn.execute(change)
    conn.close()
    for _ in range(2):
        with pytest.raises(LogDamaged, match=r"event [34] does not follow from the events before it"):
            store_in(tmp_path)


def test_an_empty_log_of_before_gets_an_empty_tree(tmp_path: Path) -> None:
    of_version_1(tmp_path, 0)
    made = store_in(tmp_path)
    assert made.tree == Tree()
    made.close()
