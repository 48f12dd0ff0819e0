"""Whether a log is what was written: every event hashed again, the tree built again, and held against all that is kept.

    events ──► leaves ──► tree ──┬── its tiles, as they are in the log        which event was changed
                                 ├── its checkpoints, as they were signed     since when something is wrong
                                 └── what somebody kept elsewhere             whether it is that log at all

Whoever can write the log's file can write another tree that fits as well, and whoever has its key can sign it: only
what was kept elsewhere tells a log from its forgery, and a whole one from one cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mitmsec.audit.merkle import HASH_BYTES, HEIGHT, WIDTH, Tiles, Tree, leaf_hash
from mitmsec.core.model import Value


class Root(Value, frozen=True):
    """The log's first `size` events as one hash. As text: SIZE:HASH."""

    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.size}:{self.root.hex()}"

    @classmethod
    def parse(cls, text: str) -> Root:
        """Raises ValueError."""
        size, colon, digest = text.strip().partition(":")
        if not colon or not (size.isascii() and size.isdecimal()):
            raise ValueError(f"{text!r} is not SIZE:HASH")
        made = cls(int(size), bytes.fromhex(digest))
        if len(made.root) != HASH_BYTES:
            raise ValueError(f"the hash of {text!r} is not {HASH_BYTES} bytes long")
        return made


class Entry(Value, frozen=True):
    """One row of the log as it was found."""

    seq: int
    envelope: bytes


class Verified(Value, frozen=True):
    """It is what the tree says, and so says each of its checkpoints."""

    root: Root
    signed: Root | None
    """The newest checkpoint; None, if there is none."""
    checkpoints: int


class Broken(Value, frozen=True):
    """The log is not what was written. `seq` is the first event for which that shows."""

    seq: int
    why: str


class Other(Value, frozen=True):
    """It fits, and it is not the one that was kept: any of its events may differ."""

    why: str


class BadNote(Value, frozen=True):
    """A checkpoint in the log that is none, or that nobody signed who should have."""

    why: str


def verify(
    entries: Iterable[Entry],
    tiles: Tiles,
    signed: Iterable[Root | BadNote] = (),
    kept: Root | None = None,
    flaw_of: Callable[[Entry], str] = lambda entry: "",
) -> Verified | Broken | Other:
    """`entries` in order, from the first; `signed` is what all checkpoints say, the smallest first; `kept` is one that
    the log must have had; `flaw_of` says what is wrong with an entry that is in the tree.

    A `Broken` that begins at `kept.size` or later says of the events before `kept.size` that they are the kept ones.
    """
    looking = _Looking(tiles, iter(signed), kept, flaw_of)
    for entry in entries:
        if (found := looking.at_size() or looking.at(entry)) is not None:
            return found
    return looking.at_size() or looking.at_end()


class _Looking:
    def __init__(
        self, tiles: Tiles, signed: Iterator[Root | BadNote], kept: Root | None, flaw_of: Callable[[Entry], str]
    ) -> None:
        self._tiles, self._signed, self._kept, self._flaw_of = tiles, signed, kept, flaw_of
        self._tree, self._leaves = Tree(), list[bytes]()
        self._size = self._fits = 0  # events; of them, as many as a checkpoint that fits stands for
        self._tile = b""  # of the level below all, where `_size` is
        self._next = next(signed, None)
        self._newest: Root | None = None
        self._checkpoints = 0

    def at(self, entry: Entry) -> Broken | None:
        if entry.seq != self._size:
            return Broken(self._size, f"missing: the next event in the log is {entry.seq}")
        number, within = divmod(self._size, WIDTH)
        if within == 0:
            if (flaw := self._grow()) is not None:
                return flaw
            self._tile = self._read(0, number)
        leaf = leaf_hash(entry.envelope)
        if self._tile[within * HASH_BYTES : (within + 1) * HASH_BYTES] != leaf:
            return Broken(entry.seq, "changed: its hash is not the one in the tree over the log")
        if why := self._flaw_of(entry):
            return Broken(entry.seq, why)
        self._leaves.append(leaf)
        self._size += 1
        return None

    def at_size(self) -> Broken | Other | None:
        """What checkpoints of this size say."""
        if isinstance(self._next, BadNote):
            return Broken(self._fits, self._next.why)
        is_signed = self._next is not None and self._next.size <= self._size
        if not is_signed and (self._kept is None or self._kept.size != self._size):
            return None
        if (flaw := self._grow()) is not None:
            return flaw
        if self._kept is not None and self._kept.size == self._size and self._kept.root != self._tree.root():
            return Other(f"its first {self._size} events are not those that were kept")
        return self._at_checkpoint(self._next) if is_signed and self._next is not None else None

    def _at_checkpoint(self, signed: Root) -> Broken | Other | None:
        if signed != Root(self._size, self._tree.root()):
            what = "changed: this event, or one behind it" if self._fits < self._size else "changed: all before"
            return Broken(self._fits, f"{what}; the checkpoint of {signed.size} events is of others")
        self._fits, self._newest, self._checkpoints = self._size, signed, self._checkpoints + 1
        self._next = next(self._signed, None)
        return self.at_size()

    def at_end(self) -> Verified | Broken | Other:
        kept, size = self._kept, self._size
        if kept is not None and kept.size > size:
            return Other(f"it ends after {size} events, and had {kept.size} when that was kept")
        if self._next is not None:
            assert isinstance(self._next, Root)  # `at_size` has told of the others
            return Broken(size, f"missing: a checkpoint tells of {self._next.size} events")
        if (flaw := self._grow() or self._edge_flaw()) is not None:
            return flaw
        return Verified(Root(size, self._tree.root()), self._newest, self._checkpoints)

    def _grow(self) -> Broken | None:
        """All leaves so far are in the tree, and the tiles in the log are its tiles."""
        self._tree, grown = self._tree.grown(self._leaves)
        self._leaves.clear()
        for tile in grown:
            if not self._read(tile.level, tile.number).startswith(tile.hashes):
                first = tile.number << HEIGHT * (tile.level + 1)
                return Broken(first, "the tree over this event, and those behind it, is not theirs")
        return None

    def _edge_flaw(self) -> Broken | None:
        """The tiles at the right edge are those of the tree, and end where it ends."""
        for level, hashes in enumerate((*self._tree.edge, b"")):
            number = self._size >> HEIGHT * (level + 1)
            if self._read(level, number) != hashes:
                return Broken(self._size, "missing: the tree over the log has more events, or others")
        return None

    def _read(self, level: int, number: int) -> bytes:
        try:
            return self._tiles(level, number)
        except LookupError:
            return b""
