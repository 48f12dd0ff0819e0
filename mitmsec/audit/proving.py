"""What a log proves: that it is what was written, and to others that an event is in it. Reads, and never writes.

Each answer is of one state of the log, whatever a recorder appends meanwhile. What is printed for others is checked
here as they will check it, before they get it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from mitmsec.audit import verifying
from mitmsec.audit.checkpoint import NOTE_LIMIT_BYTES, Checkpoint, Checks, LogKey, Untrue, opened, said_by
from mitmsec.audit.envelope import canonical
from mitmsec.audit.event import Kind
from mitmsec.audit.merkle import consistency, inclusion, is_consistent, leaf_hash, root_from
from mitmsec.audit.packing import Packing, Unpackable
from mitmsec.audit.reading import Unreadable
from mitmsec.audit.recovery import tiles_of
from mitmsec.audit.verifying import BadNote, Broken, Entry, Other, Root, Verified
from mitmsec.core.model import Value

TOLD_EVERY = 2048  # events


class Unproven(Unreadable):
    """What was to be shown is not so in this log; the message says why."""


class SignedBy(Value, frozen=True):
    """Whose signatures checkpoints must have: these keys', one after the other, in the order in which they signed."""

    keys: tuple[LogKey, ...]
    checks: Checks

    def opened(self, note: str, first: int = 0) -> tuple[Checkpoint, int]:
        """The checkpoint in a note, and by which key, of those from `first` on. Raises Untrue."""
        said = said_by(note)
        named = [place for place, key in enumerate(self.keys) if key.name == said.origin]
        if not named:
            raise Untrue(f"it is one of {said.origin}, whose key is none of those that were given")
        why = f"it is signed by {said.origin}, after another key had taken over"
        for place in [place for place in named if place >= first]:
            try:
                return opened(note, self.keys[place], self.checks), place
            except Untrue as error:
                why = str(error)
        raise Untrue(why)


class Proofs:
    """Of the log that `conn` has open."""

    def __init__(self, conn: sqlite3.Connection, packing: Packing) -> None:
        self._conn, self._packing = conn, packing

    def verify(
        self,
        kept: Root | None = None,
        told: Callable[[int], None] = lambda seq: None,
        signed_by: SignedBy | None = None,
    ) -> Verified | Broken | Other:
        """Hash every event again, and compare tree and checkpoints with what comes of it.

        `kept` is a root that the log must have had; `signed_by` has every checkpoint's signature checked. `told(seq)`
        is called now and then, for a progress bar.
        """
        try:
            with self._one_state():
                signed = self._signed(signed_by)
                return verifying.verify(self._entries(told), tiles_of(self._conn), signed, kept, _flaw)
        except sqlite3.Error as error:
            return Broken(0, f"unreadable: {error}")

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        self._conn.execute("BEGIN")
        try:
            yield
        finally:
            self._conn.execute("ROLLBACK")

    def _entries(self, told: Callable[[int], None]) -> Iterator[Entry]:
        for count, (seq, frame) in enumerate(self._conn.execute("SELECT seq, envelope FROM events ORDER BY seq")):
            if count % TOLD_EVERY == 0:
                told(count)
            try:
                yield Entry(seq, self._packing.unpacked(frame))
            except Unpackable:
                yield Entry(seq, b"")

    def _signed(self, signed_by: SignedBy | None) -> Iterator[Root | BadNote]:
        place = 0
        for size, note in self._conn.execute("SELECT size, note FROM checkpoints ORDER BY size"):
            try:
                if not isinstance(note, str) or len(note) > NOTE_LIMIT_BYTES:
                    raise Untrue("it is no note")
                checkpoint, place = (said_by(note), 0) if signed_by is None else signed_by.opened(note, place)
                if checkpoint.size != size:
                    raise Untrue(f"it is one of {checkpoint.size} events")
            except Untrue as error:
                yield BadNote(f"the checkpoint of {size} events is none: {error}")
                return
            yield Root(checkpoint.size, checkpoint.root)

    # -- to others -----------------------------------------------------------------------------------------------------
    def signers(self) -> list[tuple[int, LogKey]]:
        """Who signs this log's checkpoints, and from which size on, as the log itself says. Raises Unreadable."""
        try:
            rows = self._conn.execute("SELECT size, key FROM signers ORDER BY size, rowid").fetchall()
            return [(int(size), LogKey.parse(str(key))) for size, key in rows]
        except (ValueError, TypeError, sqlite3.Error) as error:
            raise Unreadable(f"who signs the log cannot be read: {error}") from error

    def note(self, least: int = 0) -> tuple[str, Checkpoint] | None:
        """The newest checkpoint, as text and what it says, if it stands for so many events. Raises Unreadable."""
        sql = "SELECT note FROM checkpoints WHERE size >= ? ORDER BY size DESC LIMIT 1"
        try:
            row = self._conn.execute(sql, (least,)).fetchone()
            if row is None:
                return None
            if not isinstance(row[0], str) or len(row[0]) > NOTE_LIMIT_BYTES:
                raise Untrue("it is no note")
            return row[0], said_by(row[0])
        except (Untrue, sqlite3.Error) as error:
            raise Unreadable(f"the newest checkpoint cannot be read: {error}") from error

    def shown_to_include(self, seq: int, checkpoint: Checkpoint, envelope: bytes) -> list[bytes]:
        """That this is event `seq` of those that the checkpoint stands for: hashes, from the leaf up.

        Raises Unreadable, and Unproven where it is not so.
        """
        path = self._path(lambda: inclusion(seq, checkpoint.size, tiles_of(self._conn)))
        if root_from(leaf_hash(envelope), seq, checkpoint.size, path) != checkpoint.root:
            raise Unproven(
                f"event {seq} is not one of those that the checkpoint of {checkpoint.size} events stands for"
            )
        return path

    def shown_to_begin_with(self, old: Checkpoint, new: Checkpoint) -> list[bytes]:
        """That the events of `new` begin with those of `old`. Raises Unreadable, and Unproven where it is not so."""
        path = self._path(lambda: consistency(old.size, new.size, tiles_of(self._conn)))
        if not is_consistent(old.size, old.root, new.size, new.root, path):
            raise Unproven(f"its first {old.size} events are not those of that checkpoint")
        return path

    def _path(self, proved: Callable[[], list[bytes]]) -> list[bytes]:
        try:
            return proved()
        except (LookupError, sqlite3.Error) as error:
            raise Unreadable(f"the tree over the log cannot be read: {error}") from error


def _flaw(entry: Entry) -> str:
    """What is wrong with a row whose envelope is the one in the tree."""
    try:
        fields = msgspec.json.decode(entry.envelope)
        if fields.get("seq") != entry.seq or canonical(fields) != entry.envelope:
            return "changed: its envelope is not that of this number"
        Kind(fields.get("kind"))
    except (msgspec.MsgspecError, AttributeError, TypeError, ValueError, RecursionError):
        return "changed: its envelope is no event"
    return ""
