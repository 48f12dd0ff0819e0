"""The text that a content stream of a PDF shows (ISO 32000-2, 9.4), as far as its fonts number letters as usual.

    [(card 45) -20 (39) -300 (14)] TJ   ──► "card 4539 14"      what is moved below a line begins another
    anything that shows no text ──► as it is

Strings are found by expressions, not by an interpreter: what a document never shows is found, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

BEGIN_BYTES = 2048  # by which a content stream is known
PIECE_BYTES = 1 << 16
STRING_LIMIT_BYTES = 4096
WIDE = 180  # thousandths of the size of letters: words are that far apart at least
_SHOWS = re.compile(rb"\bBT\b|\bT[jJdDm*]\b")
_TOKEN = re.compile(
    rb"(?P<string>\((?:[^()\\]|\\.|\((?:[^()\\]|\\.){0,4096}\)){0,4096}\))"
    rb"|(?P<hex><[0-9A-Fa-f\s]{0,8192}>)"
    rb"|(?P<moved>(?<![\d.])-?[\d.]{1,24}\s{1,32}(?P<y>-?[\d.]{1,24})\s{1,32}T[dD]\b)"
    rb"|(?P<far>-?\d{3,6}(?:\.\d{0,24})?)(?=\s{0,32}[(<])"
    rb"|/(?P<font>[\w+.-]{1,40})\s{1,32}-?[\d.]{1,24}\s{1,32}Tf\b"
    rb"|(?P<line>T\*|\bTm\b|\bET\b|['\"](?=\s))",
    re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|(\r\n|\r|\n)|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


type Shown = Callable[[bytes, bytes], None]
"""Is told the name of a font and a string that it shows; no name: what separates two strings."""


class PdfText:
    """One stream, decompressed."""

    def __init__(self, shown: Shown) -> None:
        self._shown, self._font = shown, b""
        self._held = b""
        self._shows: bool | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Text that it shows, or what it is."""
        self._held += data
        if self._shows is None and len(self._held) >= BEGIN_BYTES:
            self._shows = _SHOWS.search(self._held) is not None
        if self._shows is False:
            yield self._take(len(self._held))
        elif self._shows and len(self._held) >= PIECE_BYTES:
            cut = self._held.rfind(b"\n") + 1
            yield self._read(self._take(cut or len(self._held)))

    def close(self) -> Iterator[bytes]:
        """The rest."""
        held = self._take(len(self._held))
        shows = _SHOWS.search(held) is not None if self._shows is None else self._shows
        yield self._read(held) if shows else held

    def _take(self, count: int) -> bytes:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _read(self, content: bytes) -> bytes:
        out: list[bytes] = []
        for token in _TOKEN.finditer(content):
            if token["font"] is not None:
                self._font = token["font"]
            elif token["string"] is not None or token["hex"] is not None:
                out.append(_string(token))
                self._shown(self._font, out[-1])
            elif gap := _gap(token):
                out.append(gap)
                self._shown(b"", gap)
        return b"".join(out)


def literal(written: bytes) -> bytes:
    """A literal string, without its parentheses (7.3.4.2)."""
    return _ESCAPE.sub(_unescaped, written)


def _string(token: re.Match[bytes]) -> bytes:
    if token["string"] is not None:
        return literal(token["string"][1:-1])
    digits = b"".join(token["hex"][1:-1].split())
    return bytes.fromhex((digits + b"0" * (len(digits) % 2)).decode())


def _gap(token: re.Match[bytes]) -> bytes:
    if token["moved"] is not None:
        return b"" if float_or_0(token["y"]) == 0 else b"\n"
    if token["far"] is not None:
        return b" " if float_or_0(token["far"]) < -WIDE else b""
    return b"\n"


def float_or_0(digits: bytes) -> float:
    """`1.2.3` is no number."""
    try:
        return float(digits)
    except ValueError:
        return 0.0


def _unescaped(found: re.Match[bytes]) -> bytes:
    octal, line, other = found.groups()
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    return b"" if line is not None else _ESCAPED.get(other, other)
