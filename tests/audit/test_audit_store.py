"""The log on disk: appended in whole batches, gone on with after any end, and refused when its end was changed."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from audit_events import SIGNER, connection, draft, forging, log_of, request, store_in

from mitmsec.audit.checkpoint import Checkpoint
from mitmsec.audit.checkpoint import opened as opened_note
from mitmsec.audit.criteria import Filter
from mitmsec.audit.envelope import canonical, sealed
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.proving import SignedBy
from mitmsec.audit.recovery import LogDamaged
from mitmsec.audit.review import Review, opened
from mitmsec.audit.store import FILE_NAME, LogUnwritable, Store
from mitmsec.audit.verifying import Broken, Root, Verified
from mitmsec.seal import LogSigner, checks


def test_what_was_appended_is_there_in_order_and_numbered_from_zero(tmp_path: Path) -> None:
    log_of(tmp_path, [connection(f"flow-{number}") for number in range(5)])
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as conn:
        rows = conn.execute("SELECT seq, envelope FROM events ORDER BY seq").fetchall()
    said = [(seq, msgspec.json.decode(Packing().unpacked(frame))["connection"]) for seq, frame in rows]
    assert said == [(number, f"flow-{number}") for number in range(5)]


def test_the_tree_is_that_of_the_sealed_events(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.tree == Tree()
    drafts = [draft(connection()), draft(request())]
    leaves = [leaf_hash(sealed(one, seq)[1]) for seq, one in enumerate(drafts)]
    assert store.append(drafts) == store.tree == Tree().grown(leaves)[0]
    store.close()


def test_a_log_is_gone_on_with(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    store = store_in(tmp_path)
    assert store.tree.size == 1
    first = Root(1, store.tree.root())
    store.append([draft(request())])
    store.close()
    with opened(tmp_path) as log:
        assert log.proofs.verify(first).root.size == 2  # type: ignore[union-attr]


def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    conn = store._conn
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert conn.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o640


def test_a_batch_that_the_disk_refuses_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.append([draft(connection())])
    before = store.tree
    pages = store._conn.execute("PRAGMA page_count").fetchone()[0]
    store._conn.execute(f"PRAGMA max_page_count = {pages}")
    batch = [draft(request(url="https://a.example/" + secrets.token_hex(1500))) for _ in range(50)]
    with pytest.raises(LogUnwritable, match="full"):
        store.append(batch)
    assert store.tree == before
    store._conn.execute("PRAGMA max_page_count = 1000000")
    store.append(batch)
    store.close()
    with opened(tmp_path) as log:
        assert log.proofs.verify(Root(before.size, before.root())).root.size == 51  # type: ignore[union-attr]


def test_a_folder_that_is_not_there_is_unwritable(tmp_path: Path) -> None:
    with pytest.raises(LogUnwritable, match="nowhere"):
        store_in(tmp_path / "nowhere")


def test_a_file_that_is_no_log_is_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely" * 100)
    with pytest.raises(LogDamaged, match="not a database"):
        store_in(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET envelope = edit(envelope, 'curl', 'wget') WHERE seq = 2",
        "UPDATE tiles SET hashes = zeroblob(96)",
        "UPDATE tiles SET hashes = zeroblob(64)",
        "UPDATE tiles SET hashes = 'text'",
        "UPDATE tiles SET number = 1",
        "DELETE FROM tiles",
        "DELETE FROM events",
        "UPDATE checkpoints SET size = 2",
        "UPDATE checkpoints SET note = replace(note, 'mitmsec', 'mitmsec ')",
        "UPDATE checkpoints SET size = 4, note = replace(note, x'0a330a', x'0a340a')",
        "DELETE FROM events WHERE seq = 1",
    ],
)
def test_nothing_is_appended_to_a_log_whose_end_was_changed(tmp_path: Path, change: str) -> None:
    path = log_of(tmp_path, [connection(f"flow-{number}") for number in range(3)])
    store = store_in(tmp_path)
    store.append([], signs=True)
    store.close()
    with forging(path) as conn:
        conn.execute(change)
    with pytest.raises(LogDamaged):
        store_in(tmp_path)


def test_a_log_of_one_event_is_gone_on_with(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    store = store_in(tmp_path)
    assert store.tree.size == 1
    store.close()


def test_checkpoints_are_signed_with_what_they_stand_for(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.append([draft(connection())])
    assert store.signed_size == 0
    store.append([draft(request()), draft(request())], signs=True)
    assert store.signed_size == 3
    store.append([draft(connection())])
    store.close()
    with opened(tmp_path) as log:
        found = log.proofs.note()
        assert found is not None
        assert (
            found[1]
            == opened_note(found[0], SIGNER.key, checks)
            == Checkpoint("mitmsec.log/test", 3, Tree().grown(_leaves(log))[0].root())
        )
        assert log.proofs.note(4) is None
    again = store_in(tmp_path)
    assert (again.signed_size, again.tree.size) == (3, 4)
    again.close()


def _leaves(log: Review) -> list[bytes]:
    return [leaf_hash(canonical(event)) for event in log.events(Filter())][:3]


def test_the_log_says_who_signs_it_and_from_where_on(tmp_path: Path) -> None:
    other = LogSigner("mitmsec.log/other", bytes(32))
    for signer in (SIGNER, SIGNER, other):
        store = Store(tmp_path, signer)
        store.append([draft(connection())], signs=True)
        store.close()
    with opened(tmp_path) as log:
        assert log.proofs.signers() == [(0, SIGNER.key), (2, other.key)]
        assert isinstance(log.proofs.verify(signed_by=SignedBy((SIGNER.key, other.key), checks)), Verified)
        broken = log.proofs.verify(signed_by=SignedBy((SIGNER.key,), checks))
        assert isinstance(broken, Broken)
        assert "mitmsec.log/other, whose key is none of those" in broken.why
