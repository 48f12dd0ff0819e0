"""What a log proves: of one state of it, by the keys in their order, and never more than is so."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_events import SIGNER, connection, draft, forging, log_of, rehashed, store_in

from mitmsec.audit.checkpoint import Checkpoint
from mitmsec.audit.criteria import Filter
from mitmsec.audit.envelope import canonical
from mitmsec.audit.merkle import Tree, is_consistent, leaf_hash, root_from
from mitmsec.audit.proving import SignedBy, Unproven
from mitmsec.audit.reading import Unreadable
from mitmsec.audit.review import Review, opened
from mitmsec.audit.store import FILE_NAME, Store
from mitmsec.audit.verifying import Broken, Verified
from mitmsec.seal import LogSigner, checks

OTHER = LogSigner("mitmsec.log/other", bytes(32))
WRITES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from audit_events import connection, draft, store_in
store = store_in(Path(sys.argv[1]))
Path(sys.argv[1], "writing").touch()
for number in range(100_000):
    store.append([draft(connection(f"flow-{number}-{one}")) for one in range(5)], signs=number % 3 == 0)
"""


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """300 events, signed at 100, 200 and 300."""
    store = store_in(tmp_path)
    for number in range(3):
        store.append([draft(connection(f"flow-{number}-{one}")) for one in range(100)], signs=True)
    store.close()
    return tmp_path


@pytest.fixture
def log(grown: Path) -> Iterator[Review]:
    with opened(grown) as made:
        yield made


def checkpoint(log: Review, size: int) -> Checkpoint:
    leaves = [leaf_hash(canonical(event)) for event in log.events(Filter(before=size))]
    return Checkpoint(SIGNER.key.name, size, Tree().grown(leaves)[0].root())


def test_an_event_is_shown_to_be_in_the_log(log: Review) -> None:
    (event,) = log.events(Filter(after=169, before=171))
    envelope, whole = canonical(event), checkpoint(log, 300)
    path = log.proofs.shown_to_include(170, whole, envelope)
    assert root_from(leaf_hash(envelope), 170, 300, path) == whole.root
    for seq, other, of in ((171, envelope, whole), (170, b"{}", whole), (170, envelope, checkpoint(log, 200))):
        if of.size == 200:
            of = Checkpoint(of.origin, 300, of.root)
        with pytest.raises(Unproven):
            log.proofs.shown_to_include(seq, of, other)


def test_what_was_signed_before_is_shown_to_be_what_the_log_begins_with(log: Review) -> None:
    for old, new in ((100, 300), (200, 300), (300, 300)):
        before, after = checkpoint(log, old), checkpoint(log, new)
        path = log.proofs.shown_to_begin_with(before, after)
        assert is_consistent(old, before.root, new, after.root, path)
    fork = Checkpoint(SIGNER.key.name, 100, b"\x07" * 32)
    with pytest.raises(Unproven, match="its first 100 events are not those"):
        log.proofs.shown_to_begin_with(fork, checkpoint(log, 300))


def test_a_tree_that_is_gone_or_changed_shows_nothing(grown: Path, log: Review) -> None:
    (event,) = log.events(Filter(after=169, before=171))
    whole = checkpoint(log, 300)
    with forging(grown / FILE_NAME) as conn:
        conn.execute("UPDATE tiles SET hashes = zeroblob(length(hashes))")
    with pytest.raises(Unproven):
        log.proofs.shown_to_include(170, whole, canonical(event))
    with forging(grown / FILE_NAME) as conn:
        conn.execute("DELETE FROM tiles")
    with pytest.raises(Unreadable, match="the tree over the log cannot be read"):
        log.proofs.shown_to_include(170, whole, canonical(event))


def test_a_log_that_grows_while_it_is_verified_is_whole(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITES, tmp_path, Path(__file__).parents[1]])
    try:
        while not (tmp_path / "writing").exists():
            assert process.poll() is None
            time.sleep(0.01)
        sizes = []
        for _ in range(12):
            with opened(tmp_path) as log:
                result = log.proofs.verify(signed_by=SignedBy((SIGNER.key,), checks))
            assert isinstance(result, Verified), result
            sizes.append(result.root.size)
        assert sizes[0] < sizes[-1]
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


# --- keys -------------------------------------------------------------------------------------------------------------
def signed_by(folder: Path, *signers: LogSigner) -> None:
    """Three events by each of these, signed at each."""
    for signer in signers:
        store = Store(folder, signer)
        for _ in range(3):
            store.append([draft(connection(f"flow-{store.tree.size}"))], signs=True)
        store.close()


def verified(folder: Path, *keys: LogSigner) -> Verified | Broken:
    with opened(folder) as log:
        result = log.proofs.verify(signed_by=SignedBy(tuple(key.key for key in keys), checks))
    assert isinstance(result, Verified | Broken)
    return result


def test_keys_follow_each_other_in_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    signed_by(tmp_path, SIGNER, OTHER)
    assert isinstance(verified(tmp_path, SIGNER, OTHER), Verified)
    for keys in ((OTHER, SIGNER), (SIGNER,), (OTHER,)):
        assert isinstance(verified(tmp_path, *keys), Broken)


def test_a_key_that_another_has_followed_signs_no_more(tmp_path: Path) -> None:
    """Who has stolen an old key cannot write the newest part of a log anew with it."""
    signed_by(tmp_path, SIGNER, OTHER)
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("DELETE FROM checkpoints WHERE size > 5")
        conn.execute("UPDATE events SET envelope = edit(envelope, 'curl', 'wget') WHERE seq = 5")
        kept = conn.execute("SELECT * FROM checkpoints").fetchall()
    rehashed(tmp_path / FILE_NAME)
    with opened(tmp_path) as log:
        forged = checkpoint(log, 6)
    with forging(tmp_path / FILE_NAME) as conn:
        conn.executemany("INSERT INTO checkpoints VALUES (?, ?)", kept)
        conn.execute("INSERT INTO checkpoints VALUES (6, ?)", (forged.signed(SIGNER.key, SIGNER.sign),))
    broken = verified(tmp_path, SIGNER, OTHER)
    assert isinstance(broken, Broken)
    assert "after another key had taken over" in broken.why


@pytest.mark.parametrize(
    ("note", "why"),
    [
        ("5", "it is no signed note"),
        ("x" * 70_000, "it is no note"),
        (b"\x00\xff", "it is no note"),
        ("\x1b]0;pwn\x07", "it is no signed note"),
    ],
)
def test_a_note_that_is_none_is_never_handed_out(grown: Path, note: str | bytes, why: str) -> None:
    with forging(grown / FILE_NAME) as conn:
        conn.execute("UPDATE checkpoints SET note = ? WHERE size = 300", (note,))
    with opened(grown) as log:
        with pytest.raises(Unreadable, match=why):
            log.proofs.note()
        broken = log.proofs.verify()
    assert isinstance(broken, Broken)
    assert broken.seq == 200
    assert why in broken.why


def test_a_checkpoint_that_nobody_signed_is_found_with_the_key(grown: Path) -> None:
    with opened(grown) as log:
        false = checkpoint(log, 300).signed(SIGNER.key, lambda message: bytes(64))
    with forging(grown / FILE_NAME) as conn:
        conn.execute("UPDATE checkpoints SET note = ? WHERE size = 300", (false,))
    with opened(grown) as log:
        assert isinstance(log.proofs.verify(), Verified)
    assert isinstance(verified(grown, SIGNER), Broken)


def test_whose_keys_they_are_says_the_log_or_that_it_cannot(tmp_path: Path) -> None:
    signed_by(tmp_path, SIGNER, OTHER)
    with opened(tmp_path) as log:
        assert log.proofs.signers() == [(0, SIGNER.key), (3, OTHER.key)]
        with forging(tmp_path / FILE_NAME) as conn:
            conn.execute("UPDATE signers SET key = x'00ff'")
        with pytest.raises(Unreadable, match="who signs the log"):
            log.proofs.signers()


@pytest.mark.parametrize("envelope", ["[" * 50_000, "5", '{"seq":1e400}'])
def test_a_row_that_no_parser_can_take_is_told(tmp_path: Path, envelope: str) -> None:
    log_of(tmp_path, [connection()])
    with forging(tmp_path / FILE_NAME) as conn:
        conn.execute("UPDATE events SET envelope = pack(?)", (envelope,))
    rehashed(tmp_path / FILE_NAME)
    with opened(tmp_path) as log:
        broken = log.proofs.verify()
        assert isinstance(broken, Broken)
        assert broken.why.startswith("changed")
        with pytest.raises(Unreadable):
            list(log.events(Filter()))
