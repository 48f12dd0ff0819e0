"""What is said to the scanner, and by it.

supervisor ⇄ scanner    ScannerSettings, ProducerUp → · ← Ready
worker ⇄ scanner        ScanContent → · ← ScanBegun, ScanAnswer
supervisor → worker     ScannerGone, on the same channel, where the scanner at its other end has ended
"""

from __future__ import annotations

from mitmsec.core.messages import Message
from mitmsec.core.rule_hits import Hits


class ScannerSettings(Message, frozen=True):
    """fds: the policy (memfd), with the rules compiled behind it."""


class ScanContent(Message, frozen=True):
    """A piece of a content. Pieces of one `number` follow each other; a worker has one content under way at a time."""

    number: int
    data: bytes
    begins: bool = False
    ends: bool = False


class ScanBegun(Message, frozen=True):
    """That content is being scanned: if this is the last that is heard, it was the one that could not be."""

    number: int


class ScanAnswer(Message, frozen=True):
    number: int
    hits: Hits


class ScannerGone(Message, frozen=True):
    """Nobody scans what was sent. `another_comes`: what had not begun may be sent again."""

    another_comes: bool
