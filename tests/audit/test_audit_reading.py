"""Opening a log for reading: told what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_events import connection, forging, log_of

from mitmsec.audit.reading import NoLog, Unreadable, connected
from mitmsec.audit.store import FILE_NAME


def test_a_log_of_an_earlier_version_is_told_as_one(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("PRAGMA user_version = 2")
    with pytest.raises(NoLog, match="an earlier version; the next start of a recorder takes it over"):
        connected(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("DROP TABLE checkpoints", "no table checkpoints"),
        (
            """
            DROP TABLE events; CREATE VIEW events AS WITH RECURSIVE n(seq, envelope) AS
            (SELECT 0, x'00' UNION ALL SELECT seq + 1, envelope FROM n) SELECT * FROM n
            """,
            "it has a view, events",
        ),
    ],
)
def test_a_file_of_another_shape_is_told_at_once(tmp_path: Path, change: str, why: str) -> None:
    log_of(tmp_path, [connection()])
    with forging(tmp_path / FILE_NAME) as conn:
        conn.executescript(change)
    with pytest.raises(Unreadable, match=why):
        connected(tmp_path)
