"""What readers of archives and documents say, in order, as content goes by:

    (Entry, bytes*, Ended?)*      Unreadable at any place

An `Entry` ends the one before it. An empty slice says nothing but that time goes by: a loop that has nothing to say for
long says that. Readers are fed slices and hold no more than they must; nothing is written
to a disk, and no name is ever used as a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mitmsec.core.body_parts import Mark, Unreadable
from mitmsec.core.model import Value

__all__ = ["Entry", "Event", "Mark", "Passed", "Reader", "Unreadable"]


class Entry(Value, frozen=True):
    """A file in an archive, a part of a mail, the text of a document begins. `name` is as it stands there."""

    name: str
    content_type: str = ""


class Passed(Value, frozen=True):
    """So much came out of an entry that is not shown."""

    size_bytes: int


type Event = Entry | bytes | Unreadable | Mark | Passed


class Reader(Protocol):
    """One container being read."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`. All of it must be taken before the next call."""

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
