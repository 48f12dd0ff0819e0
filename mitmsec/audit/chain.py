"""The hash chain over the log: one value, the head, stands for every event up to it.

    leaf(n)   = SHA-256(0x00 || envelope(n))
    head(0)   = SHA-256("")                                   of the empty log
    head(n+1) = SHA-256(0x01 || head(n) || leaf(n))

The prefixes keep leaves and heads apart, as in RFC 6962 section 2.1. Whoever can write the log can write another chain
that fits as well: only a head that was kept elsewhere tells a log from its forgery, and a whole one from one cut short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mitmsec.core.model import Value

HASH_SIZE_BYTES = 32
LEAF_PREFIX = b"\x00"
HEAD_PREFIX = b"\x01"


class Head(Value, frozen=True):
    """The log's first `size` events as one hash."""

    size: int
    hash: bytes

    def after(self, envelope: bytes) -> Head:
        """The head once `envelope` is appended."""
        leaf = hashlib.sha256(LEAF_PREFIX + envelope).digest()
        return Head(self.size + 1, hashlib.sha256(HEAD_PREFIX + self.hash + leaf).digest())

    def __str__(self) -> str:
        return f"{self.size}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read SIZE:HASH, as `str` writes it. Raises ValueError."""
        size, colon, digest = text.strip().partition(":")
        if not colon or not (size.isascii() and size.isdecimal()):
            raise ValueError(f"{text!r} is not SIZE:HASH")
        head = cls(int(size), bytes.fromhex(digest))
        if len(head.hash) != HASH_SIZE_BYTES:
            raise ValueError(f"the hash of {text!r} is not {HASH_SIZE_BYTES} bytes long")
        return head


EMPTY = Head(0, hashlib.sha256(b"").digest())


class Entry(Value, frozen=True):
    """One row of the log as it was found. `head` is the hash that was stored with it."""

    seq: int
    envelope: bytes
    head: bytes
    flaw: str = ""  # what is wrong with the row apart from the chain


class Verified(Value, frozen=True):
    """Every event follows from the one before it."""

    head: Head


class Broken(Value, frozen=True):
    """The log is not what was written. `seq` is the first event for which that shows."""

    seq: int
    why: str


class Other(Value, frozen=True):
    """The chain fits, and it is not the one that the kept head was taken from: any of its events may differ."""

    why: str


def verify(entries: Iterable[Entry], kept: Head | None = None) -> Verified | Broken | Other:
    """Recompute the chain over all `entries`, in order, from the first; `kept` is a head that the log must have had.

    A `Broken` that begins at `kept.size` or later says of the events before `kept.size` that they are the kept ones.
    """
    head = EMPTY
    other = _differs(head, kept)
    for entry in entries:
        if other is not None:
            return other
        if entry.seq != head.size:
            return Broken(head.size, f"missing: the next event in the log is {entry.seq}")
        head = head.after(entry.envelope)
        if entry.head != head.hash:
            return Broken(entry.seq, "changed: its hash does not follow from the events before it")
        if entry.flaw:
            return Broken(entry.seq, entry.flaw)
        other = _differs(head, kept)
    if other is not None:
        return other
    if kept is not None and kept.size > head.size:
        return Other(f"it ends after {head.size} events, and had {kept.size} when the head was kept")
    return Verified(head)


def _differs(head: Head, kept: Head | None) -> Other | None:
    if kept is None or kept.size != head.size or kept.hash == head.hash:
        return None
    return Other(f"its first {head.size} events are not those that the head stands for")
