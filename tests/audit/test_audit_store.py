"""The log on disk: appended in whole batches, gone on with after any end, and refused when its end was changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from audit_events import connection, draft, log_of, request

from mitmsec.audit.chain import EMPTY, Head
from mitmsec.audit.envelope import sealed
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME, LogDamaged, LogUnwritable, Store


def test_what_was_appended_is_there_in_order_and_numbered_from_zero(tmp_path: Path) -> None:
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(5)])
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as conn:
        rows = conn.execute("SELECT seq, connection FROM events ORDER BY seq").fetchall()
    assert rows == [(number, f"flow-{number}") for number in range(5)]


def test_the_head_is_that_of_the_sealed_events(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.head == EMPTY
    drafts = [draft(connection()), draft(request())]
    expected = EMPTY
    for seq, one in enumerate(drafts):
        expected = expected.after(sealed(one, seq)[1])
    assert store.append(drafts) == store.head == expected
    store.close()


def test_a_log_is_gone_on_with(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    store = Store(tmp_path)
    first = store.head
    assert first.size == 1
    store.append([draft(request())])
    store.close()
    with opened(tmp_path) as log:
        assert log.verify(first).head.size == 2  # type: ignore[union-attr]


def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    conn = store._conn
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert conn.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o640


def test_a_batch_that_the_disk_refuses_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append([draft(connection())])
    before = store.head
    pages = store._conn.execute("PRAGMA page_count").fetchone()[0]
    store._conn.execute(f"PRAGMA max_page_count = {pages}")
    batch = [draft(request(url="https://a.example/" + "x" * 3000)) for _ in range(50)]
    with pytest.raises(LogUnwritable, match="full"):
        store.append(batch)
    assert store.head == before
    store._conn.execute("PRAGMA max_page_count = 1000000")
    store.append(batch)
    store.close()
    with opened(tmp_path) as log:
        assert log.verify(before).head.size == 51  # type: ignore[union-attr]


def test_a_folder_that_is_not_there_is_unwritable(tmp_path: Path) -> None:
    with pytest.raises(LogUnwritable, match="nowhere"):
        Store(tmp_path / "nowhere")


def test_a_file_that_is_no_log_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely" * 100)
    with pytest.raises(LogDamaged, match="not a database"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET envelope = replace(envelope, 'curl', 'wget') WHERE seq = 2",
        "UPDATE events SET head = zeroblob(32) WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
    ],
)
def test_nothing_is_appended_to_a_log_whose_end_was_changed(tmp_path: Path, change: str) -> None:
    path = log_of(tmp_path, [connection(f"flow-{number}") for number in range(3)])
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute(change)
    with pytest.raises(LogDamaged):
        Store(tmp_path)


def test_a_log_of_one_event_is_checked_against_the_empty_head(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    store = Store(tmp_path)
    assert isinstance(store.head, Head)
    assert store.head.size == 1
    store.close()
