"""What readers of archives and documents say, in order, as content goes by:

    (Entry, bytes*, Ended?)*      Unreadable at any place

An `Entry` ends the one before it. An empty slice says nothing but that time goes by: a loop that has nothing to say for
long says that. Readers are fed slices and hold no more than they must; nothing is written
to a disk, and no name is ever used as a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Protocol

from mitmsec.core.model import Value


class Entry(Value, frozen=True):
    """A file in an archive, a part of a mail, the text of a document begins. `name` is as it stands there."""

    name: str
    content_type: str = ""


class Unreadable(Value, frozen=True):
    """Something of the current entry, or of the whole where there is none, cannot be looked at."""

    why: str


class Mark(Enum):
    """What is told without anything more to say. `ENDED`: of the current entry."""

    ENDED = "ended"


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
