"""Quoted-printable in mail (RFC 2045 §6.7): escapes and soft line breaks undone, however the lines come in pieces.

What follows a `=` and is no escape stays as it is, as most programs read it. A `=` before a CR that ends no line is
strange: some leave out everything up to the next line break, and some do not.
"""

from __future__ import annotations

import re

ESCAPE_LIMIT_BYTES = 256  # of a soft break with blanks in it; more is none
_ESCAPE = re.compile(rb"=(?:([0-9A-Fa-f]{2})|[ \t]*(?:\r?\n|\r))")
_UNFINISHED = re.compile(rb"=(?:[0-9A-Fa-f]|[ \t]{0,200}\r?)?\Z")


class QuotedPrintable:
    """One part. Holds the beginning of an escape."""

    strange = b""
    """Nothing is shown twice: what may be read otherwise has been told as it is."""

    def __init__(self) -> None:
        self._held = b""
        self.is_strange = False
        """Programs may read something else there."""

    def feed(self, lines: bytes) -> bytes:
        """What they say."""
        data = self._held + lines
        unfinished = _UNFINISHED.search(data, max(0, len(data) - ESCAPE_LIMIT_BYTES))
        self._held = data[unfinished.start() :] if unfinished is not None else b""
        return self._undone(data[: len(data) - len(self._held)])

    def close(self) -> bytes:
        """What the last characters say."""
        rest, self._held = self._held, b""
        return self._undone(rest) if rest.strip(b"= \t") else b""

    def _undone(self, data: bytes) -> bytes:
        return _ESCAPE.sub(self._said, data) if b"=" in data else data

    def _said(self, found: re.Match[bytes]) -> bytes:
        if found[1] is not None:
            return bytes([int(found[1], 16)])
        if found[0].endswith(b"\r"):
            self.is_strange = True
        return b""
