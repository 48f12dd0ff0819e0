"""Tables: made by sqlite-utils, once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from mitmsec.audit import schema, store
from mitmsec.audit.store import FILE_NAME, Store

BEGIN = """
import sys
from pathlib import Path
from mitmsec.audit.store import Store
Store(Path(sys.argv[1])).close()
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
    Store(tmp_path).close()
    conn = sqlite3.connect(tmp_path / FILE_NAME)
    conn.execute("PRAGMA user_version = 0")
    conn.close()
    assert begun(tmp_path) == "True\n"
    assert begun(tmp_path) == "False\n"
