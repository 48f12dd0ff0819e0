"""All that somebody who can write a log's file can do to it, at every position: for the tests and `make torture`.

the log ──► raw: rows changed, tree and checkpoints left            without a key, without care
        └─► written anew: tree and checkpoints fit, signed again    with the log's own, stolen keys, or a forged one
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing

from audit_events import SIGNER, connection, draft

from mitmsec.audit.checkpoint import Checkpoint
from mitmsec.audit.envelope import Draft, sealed
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.proving import Proofs, SignedBy
from mitmsec.audit.verifying import Broken, Other, Root, Verified
from mitmsec.seal import LogSigner, checks

LATER = LogSigner("mitmsec.log/later", bytes(range(1, 33)))
FORGED = LogSigner(SIGNER.key.name, bytes(32))
FORGED_LATER = LogSigner(LATER.key.name, b"f" * 32)
KEYS = SignedBy((SIGNER.key, LATER.key), checks)
PACKING = Packing()
TABLES = """
CREATE TABLE events (seq INTEGER PRIMARY KEY, envelope BLOB);
CREATE TABLE tiles (level INTEGER, number INTEGER, hashes BLOB NOT NULL, PRIMARY KEY (level, number));
CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE signers (size INTEGER, key TEXT NOT NULL, PRIMARY KEY (size, key));
"""
DRAFTS = [draft(connection(f"flow-{number}")) for number in range(300)]
OTHERS = [draft(connection(f"other-{number}")) for number in range(300)]

type Variant = tuple[str, int, sqlite3.Connection]


def log_of(drafts: Sequence[Draft], signers: tuple[LogSigner, LogSigner] = (SIGNER, LATER)) -> sqlite3.Connection:
    """A log of these events, signed by the first until its middle, and by the second at its end."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.executescript(TABLES)
    envelopes = [sealed(one, seq)[1] for seq, one in enumerate(drafts)]
    leaves = [leaf_hash(one) for one in envelopes]
    _, tiles = Tree().grown(leaves)
    half = len(drafts) // 2
    with conn:
        conn.execute("BEGIN")
        conn.executemany(
            "INSERT INTO events VALUES (?, ?)", [(seq, PACKING.packed(one)) for seq, one in enumerate(envelopes)]
        )
        conn.executemany("INSERT INTO tiles VALUES (?, ?, ?)", [(one.level, one.number, one.hashes) for one in tiles])
        for size, signer in {half: signers[0], len(drafts): signers[1]}.items():
            conn.execute("INSERT INTO signers VALUES (?, ?)", (size, str(signer.key)))
            if size:
                note = Checkpoint(signer.key.name, size, Tree().grown(leaves[:size])[0].root())
                conn.execute("INSERT INTO checkpoints VALUES (?, ?)", (size, note.signed(signer.key, signer.sign)))
    return conn


def kept_of(log: sqlite3.Connection) -> Root:
    """What somebody keeps elsewhere: the newest checkpoint."""
    (note,) = log.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    said, _ = KEYS.opened(note)
    return Root(said.size, said.root)


def verified(log: sqlite3.Connection, kept: Root | None, keys: SignedBy | None) -> Verified | Broken | Other:
    return Proofs(log, PACKING).verify(kept, signed_by=keys)


def raw(size: int, at: int) -> Iterator[Variant]:
    """Rows changed at one position."""
    frame = PACKING.packed(sealed(OTHERS[at], at)[1])
    changes: dict[str, list[tuple[str, tuple[object, ...]]]] = {
        "edited": [("UPDATE events SET envelope = ? WHERE seq = ?", (frame, at))],
        "deleted": [("DELETE FROM events WHERE seq = ?", (at,))],
        "deleted, closed up": [("DELETE FROM events WHERE seq = ?", (at,)), *_moved(at, -1)],
        "inserted": [*_moved(at - 1, 1), ("INSERT INTO events VALUES (?, ?)", (at, frame))],
        "cut off": [("DELETE FROM events WHERE seq >= ?", (at,))],
    }
    if at + 1 < size:
        changes["swapped"] = [
            ("UPDATE events SET seq = -1 WHERE seq = ?", (at,)),
            ("UPDATE events SET seq = ? WHERE seq = ?", (at, at + 1)),
            ("UPDATE events SET seq = ? WHERE seq = -1", (at + 1,)),
        ]
    with closing(log_of(DRAFTS[:size])) as whole:
        for name, statements in changes.items():
            log = sqlite3.connect(":memory:", isolation_level=None)
            whole.backup(log)
            for sql, values in statements:
                log.execute(sql, values)
            yield name, at, log


def _moved(after: int, by: int) -> list[tuple[str, tuple[object, ...]]]:
    """Numbers behind one, by one; in two steps, for each is there once."""
    return [
        ("UPDATE events SET seq = -seq - 10 WHERE seq > ?", (after,)),
        ("UPDATE events SET seq = -(seq + 10) + ? WHERE seq < -9", (by,)),
    ]


def written_anew(size: int, at: int) -> Iterator[Variant]:
    """With a tree and checkpoints that fit, by the log's own keys."""
    mine, other = DRAFTS[:size], OTHERS[:size]
    forms = {
        "edited": [*mine[:at], other[at], *mine[at + 1 :]],
        "deleted": [*mine[:at], *mine[at + 1 :]],
        "inserted": [*mine[:at], other[at], *mine[at:]],
        "rolled back": mine[:at],
        "forked": [*mine[:at], *other[at:], OTHERS[-1]],
        "another log's": OTHERS[: at + 1],
    }
    if at + 1 < size:
        forms["swapped"] = [*mine[:at], mine[at + 1], mine[at], *mine[at + 2 :]]
    for name, drafts in forms.items():
        yield name, at, log_of(drafts)


def forged(size: int, at: int) -> Iterator[Variant]:
    """By keys of the same names that are not the log's."""
    mine = DRAFTS[:size]
    yield "forged", at, log_of([*mine[:at], OTHERS[at], *mine[at + 1 :]], (FORGED, FORGED_LATER))


def missed(size: int, at: int) -> tuple[int, list[str]]:
    """How many variants there are at one position, and which are judged otherwise than they must be."""
    with closing(log_of(DRAFTS[:size])) as log:
        kept, count, wrong = kept_of(log), 0, list[str]()
        assert isinstance(verified(log, kept, KEYS), Verified)
    for variants, found_alone, found_by_key in ((raw, True, True), (written_anew, False, False), (forged, False, True)):
        for name, _, tampered in variants(size, at):
            with closing(tampered):
                count += 1
                found = [
                    not isinstance(verified(tampered, *known), Verified)
                    for known in ((kept, KEYS), (None, None), (None, KEYS))
                ]
            if found != [True, found_alone, found_by_key]:
                wrong.append(f"{variants.__name__}: {name} at {at} of {size}: {found}")
    return count, wrong
