"""What a recorder looks at before it goes on with a log, and signs what comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from audit_events import SIGNER, connection, draft, forging, log_of, rehashed, request, store_in

from mitmsec.audit.checkpoint import Checkpoint
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.proving import SignedBy
from mitmsec.audit.recovery import LAST_NAME, LogDamaged
from mitmsec.audit.review import opened
from mitmsec.audit.store import FILE_NAME, LogUnwritable, Store
from mitmsec.audit.verifying import Verified
from mitmsec.seal import LogSigner, checks

OTHER = LogSigner("mitmsec.log/other", bytes(32))


def signed(folder: Path, events: int, signer: LogSigner = SIGNER) -> None:
    store = Store(folder, signer)
    store.append([draft(connection(f"flow-{store.tree.size}-{number}")) for number in range(events)], signs=True)
    store.close()


def refused(folder: Path, why: str, signer: LogSigner = SIGNER) -> None:
    for _ in range(2):
        with pytest.raises(LogDamaged, match=why):
            Store(folder, signer)


@pytest.mark.parametrize("size", [256, 512, 65_536])
def test_events_that_are_gone_behind_a_tiles_end_are_missed(tmp_path: Path, size: int) -> None:
    store = store_in(tmp_path)
    events = [draft(request("f"))] * (size + 44)
    for begin in range(0, len(events), 5000):
        store.append(events[begin : begin + 5000])
    store.close()
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("DELETE FROM events WHERE seq >= ?", (size,))
    refused(tmp_path, "events are gone")


def test_all_events_gone_are_missed_by_the_tree(tmp_path: Path) -> None:
    log_of(tmp_path, [connection()])
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("DELETE FROM events")
    refused(tmp_path, "events are gone: it has 0")


def test_a_log_that_was_rolled_back_is_not_gone_on_with(tmp_path: Path) -> None:
    signed(tmp_path, 5)
    shutil.copy(tmp_path / FILE_NAME, tmp_path / "backup")
    signed(tmp_path, 5)
    (tmp_path / "backup").rename(tmp_path / FILE_NAME)
    refused(tmp_path, "the 10 events that it had when it was last signed here")
    (tmp_path / LAST_NAME).unlink()  # as the message says
    signed(tmp_path, 1)


def test_what_was_prepared_while_nobody_looked_is_not_signed(tmp_path: Path) -> None:
    """Another event, a tree that fits, and no checkpoint that says otherwise: by someone who has no key."""
    signed(tmp_path, 5)
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("UPDATE events SET envelope = edit(envelope, 'curl', 'wget') WHERE seq = 3")
    rehashed(tmp_path / FILE_NAME)
    refused(tmp_path, "when it was last signed here")


def test_a_newest_checkpoint_that_nobody_signed_is_no_ground_to_go_on(tmp_path: Path) -> None:
    signed(tmp_path, 5)
    (tmp_path / LAST_NAME).unlink()
    with forging(tmp_path / FILE_NAME) as conn:
        envelopes = [Packing().unpacked(row[0]) for row in conn.execute("SELECT envelope FROM events ORDER BY seq")]
        root = Tree().grown([leaf_hash(one) for one in envelopes])[0].root()
        false = Checkpoint(SIGNER.key.name, 5, root).signed(SIGNER.key, lambda message: bytes(64))
        conn.execute("UPDATE checkpoints SET note = ?", (false,))
    refused(tmp_path, "its newest checkpoint does not fit: the signature")
    stranger = Checkpoint("mitmsec.log/stranger", 5, root)
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("UPDATE checkpoints SET note = ?", (stranger.signed(OTHER.key, OTHER.sign),))
    refused(tmp_path, "who has never signed this log")


def test_a_new_key_goes_on_and_both_are_known(tmp_path: Path) -> None:
    signed(tmp_path, 5)
    Store(tmp_path, OTHER).close()  # which has nothing to sign yet
    signed(tmp_path, 5, OTHER)
    with opened(tmp_path) as log:
        assert [key for _, key in log.proofs.signers()] == [SIGNER.key, OTHER.key]
        keys = SignedBy((SIGNER.key, OTHER.key), checks)
        assert isinstance(log.proofs.verify(signed_by=keys), Verified)


def test_what_another_log_left_is_not_held_against_a_new_one(tmp_path: Path) -> None:
    signed(tmp_path, 5)
    (tmp_path / FILE_NAME).rename(tmp_path / "moved away")
    signed(tmp_path, 1, OTHER)
    assert OTHER.key.name in (tmp_path / LAST_NAME).read_text()


@pytest.mark.parametrize("left", [b"", b"\xff", b"no note\n"])
def test_what_was_last_signed_may_be_unreadable(tmp_path: Path, left: bytes) -> None:
    signed(tmp_path, 5)
    (tmp_path / LAST_NAME).write_bytes(left)
    signed(tmp_path, 1)


def test_only_its_owner_reads_what_was_last_signed(tmp_path: Path) -> None:
    signed(tmp_path, 1)
    assert (tmp_path / LAST_NAME).stat().st_mode & 0o777 == 0o600


def test_a_disk_that_does_not_take_it_does_not_keep_the_log_from_going_on(tmp_path: Path) -> None:
    signed(tmp_path, 1)
    before = (tmp_path / LAST_NAME).read_text()
    (tmp_path / f"{LAST_NAME}.new").mkdir()
    signed(tmp_path, 1)
    assert (tmp_path / LAST_NAME).read_text() == before
    signed(tmp_path, 1)


def test_what_was_last_signed_cannot_be_read_so_nothing_is_appended(tmp_path: Path) -> None:
    signed(tmp_path, 1)
    (tmp_path / LAST_NAME).unlink()
    (tmp_path / LAST_NAME).mkdir()
    with pytest.raises(LogUnwritable):
        store_in(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("ALTER TABLE events RENAME TO those; CREATE VIEW events AS SELECT * FROM those", "it has a view, events"),
        ("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM events; END", "it has a trigger, t"),
        ("DROP TABLE tiles", "it has no table tiles"),
        ("PRAGMA user_version = 99", "written by a newer version"),
        ("UPDATE signers SET key = 'nobody'", "who signed it cannot be read"),
    ],
)
def test_a_file_of_another_shape_is_no_log(tmp_path: Path, change: str, why: str) -> None:
    signed(tmp_path, 2)
    with forging(tmp_path / FILE_NAME) as conn:
        conn.executescript(change)
    refused(tmp_path, why)


def test_of_old_checkpoints_few_are_left(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for _ in range(200):
        store.append([draft(request("f"))] * 100, signs=True)
    store.close()
    with forging(tmp_path / FILE_NAME) as conn:
        sizes = [size for (size,) in conn.execute("SELECT size FROM checkpoints ORDER BY size")]
    assert sizes == [100, 4100, *range(7300, 20_100, 100)]
    with opened(tmp_path) as log:
        assert isinstance(log.proofs.verify(), Verified)
