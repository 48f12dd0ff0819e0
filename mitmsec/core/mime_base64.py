"""Base64 in mail (RFC 2045 §6.8), as most programs read it: what is none is passed over, behind padding it goes on.

    lines ──► LenientBase64 ──► bytes
                  └► `strange`: from the first line on that not all programs read so, as it travels

Some end at the first padding, some carry odd characters over to what follows, some show what they can't decode.
"""

from __future__ import annotations

import binascii
import string

STRANGE_LIMIT_BYTES = 1 << 16
PADDING_LIMIT = 2
_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_NO_BASE64 = bytes(set(range(256)) - set(_ALPHABET + b"="))
_LINE = _ALPHABET + b"\r\n"


class LenientBase64:
    """One part. Holds less than four characters, and what is strange."""

    def __init__(self) -> None:
        self._quantum = b""  # no whole group yet
        self._padding = 0  # characters of it
        self._strange = bytearray()
        self.is_strange = False
        """Programs may read something else there."""

    @property
    def strange(self) -> bytes:
        """Lines from the first strange one on, STRANGE_LIMIT_BYTES at most."""
        return bytes(self._strange)

    def feed(self, lines: bytes) -> bytes:
        """What they say. Whole lines, or pieces of one that is very long."""
        begin = 0 if self.is_strange else self._begin_of_strange(lines)
        self.is_strange = begin < len(lines) or self.is_strange
        self._strange += lines[begin : begin + STRANGE_LIMIT_BYTES - len(self._strange)]
        *ended, goes_on = lines.translate(None, _NO_BASE64).split(b"=")
        return b"".join([*map(self._padded, ended), self._decoded(goes_on)])

    def close(self) -> bytes:
        """What the last characters say."""
        self.is_strange = self.is_strange or len(self._quantum) == 1
        return self._padded(b"")

    def _begin_of_strange(self, lines: bytes) -> int:
        """Where the first line begins that has something else in it, or behind its padding, or one character alone."""
        if not self._padding and not lines.translate(None, _LINE):
            return len(lines)
        at, characters = 0, len(self._quantum)
        for line in lines.splitlines(keepends=True):
            word, *more = line.split() or [b""]
            text = word.rstrip(b"=")
            characters += len(text)
            is_alone = text != word and characters % 4 == 1
            if more or is_alone or (self._padding and text) or text.translate(None, _ALPHABET):
                return at
            self._padding += len(word) - len(text)
            if self._padding > PADDING_LIMIT:
                return at
            at += len(line)
        return at

    def _decoded(self, characters: bytes) -> bytes:
        characters = self._quantum + characters
        whole = len(characters) // 4 * 4
        self._quantum = characters[whole:]
        return binascii.a2b_base64(characters[:whole])

    def _padded(self, characters: bytes) -> bytes:
        characters, self._quantum = self._quantum + characters, b""
        return _group(characters)


def from_base64(text: bytes) -> bytes:
    """The same, of what is there as a whole."""
    return b"".join(map(_group, text.translate(None, _NO_BASE64).split(b"=")))


def _group(characters: bytes) -> bytes:
    """What stands before padding. A character alone, of the four that make a group, says nothing."""
    if len(characters) % 4 == 1:
        characters = characters[:-1]
    return binascii.a2b_base64(characters + b"=" * (-len(characters) % 4))
