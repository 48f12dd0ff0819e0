"""How a word may be spelled in bytes, and where it stands in them.

A word is compared without regard to case (Unicode case folding, so STRASSE finds Straße), in UTF-8 and in UTF-16LE, the
way Windows programs write text. Each character becomes the set of strings that fold to it:

    Kiss x  →  k: k K K(U+212A)   i: i I   ss: ss sS … ß ẞ   space: SP TAB LF CR NBSP + %20   x: x X

That is a regular expression, too slow to run over everything. So each word has an anchor, the longest run of
characters that ASCII upper and lower case spell completely ("confidential" → "dential"): it is found in the lower-cased
bytes at memory speed, and the expression runs only around it. Words without an anchor (Greek, Cyrillic, "ss") pay the
full price.

Not covered: characters written as a base letter and a combining accent where the word has one character (or the
reverse), and ASCII letters that were percent-encoded for no reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum
from functools import cache, lru_cache
from urllib.parse import quote

from mitmsec.core.model import Value


class Encoding(StrEnum):
    """The encodings that are looked for."""

    UTF_8 = "utf-8"
    UTF_16LE = "utf-16-le"


BORDER_BYTES = 2
PIECE_CHARACTERS = 4  # longer pieces, such as a row of s, are cut: their spellings would be too many
SEEN_LIMIT = 4096  # pieces of words that are known by then: most of all words are made of few
SPACES = (" ", "\t", "\n", "\r", "\u00a0", "+", "%20")  # "+" and "%20": forms and addresses
# Where Unicode has characters that change when folded; a test compares with all of Unicode.
_CASED = (
    (0x41, 0x600),
    (0x10A0, 0x1400),
    (0x1C80, 0x2185),
    (0x24B6, 0x24EA),
    (0x2C00, 0x2D30),
    (0xA640, 0xABC0),
    (0xFB00, 0xFB18),
    (0xFF21, 0xFF3B),
    (0x10400, 0x105C0),
    (0x10C80, 0x10D70),
    (0x118A0, 0x118E0),
    (0x16E40, 0x16EC0),
    (0x1E900, 0x1E922),
)
_WORD_BYTE = rb"[0-9A-Za-z_\x80-\xff]"  # bytes from 0x80 belong to letters beyond ASCII more often than not


class Word(Value, frozen=True):
    """A word to look for; `whole` demands that no letter, digit or underscore stands next to it."""

    text: str
    whole: bool = False


class Needle:
    """One word in one encoding.

    `has_nul`: it stands in no content without a zero byte. `reach_bytes`: a match that begins at least so far before
    the end of the known bytes cannot change with more bytes.
    """

    __slots__ = (
        "_after",
        "_anchor",
        "_before",
        "_compiled",
        "_elements",
        "_lead_bytes",
        "_span_bytes",
        "has_nul",
        "word",
    )

    def __init__(self, word: Word, encoding: Encoding) -> None:
        folded = _elements(word.text.casefold())
        first, last = _anchor(folded)
        self.word = word
        self._elements = [_encoded(element, encoding) for element in folded]
        self.has_nul = any(all(0 in spelling for spelling in element) for element in self._elements)
        self._anchor = b"".join(element[-1] for element in self._elements[first:last])  # the lower case sorts last
        self._lead_bytes = sum(_longest(element) for element in self._elements[:first])
        self._span_bytes = sum(map(_longest, self._elements))
        self._before, self._after = _borders(encoding) if word.whole else (b"", b"")
        self._compiled: re.Pattern[bytes] | None = None  # most words are never met

    @property
    def reach_bytes(self) -> int:
        return self._span_bytes + BORDER_BYTES

    def found(self, data: bytes, lowered: bytes, at: int) -> Iterator[tuple[int, int]]:
        """Begin and end of each spelling in `data` from `at` on, none overlapping. `lowered` is `data.lower()`."""
        if not self._anchor:
            yield from (match.span() for match in self._pattern.finditer(data, at))
            return
        hit = lowered.find(self._anchor, at)
        while hit >= 0:
            match = self._pattern.search(data, max(at, hit - self._lead_bytes), hit + self.reach_bytes)
            if match:
                yield match.span()
                at = match.end()
            hit = lowered.find(self._anchor, at if match else hit + 1)

    @property
    def _pattern(self) -> re.Pattern[bytes]:
        if self._compiled is None:
            spelled = b"".join(map(_alternatives, self._elements))
            self._compiled = re.compile(self._before + spelled + self._after)
        return self._compiled


def needles(word: Word) -> tuple[Needle, ...]:
    """`word` in every encoding that is looked for."""
    return tuple(Needle(word, encoding) for encoding in Encoding)


def _anchor(elements: list[frozenset[str]]) -> tuple[int, int]:
    """Begin and end of the longest run of elements that are one ASCII character in either case; (0, 0) for none."""
    best = run = (0, 0)
    for index, element in enumerate(elements):
        run = (run[0], index + 1) if _is_plain(element) else (index + 1, index + 1)
        best = max(best, run, key=lambda span: span[1] - span[0])
    return best


@lru_cache(SEEN_LIMIT)
def _is_plain(element: frozenset[str]) -> bool:
    return all(text.isascii() and len(text) == 1 for text in element) and len({text.lower() for text in element}) == 1


def _longest(spelled: tuple[bytes, ...]) -> int:
    return max(map(len, spelled))


def _elements(folded: str) -> list[frozenset[str]]:
    """The spellings of each piece of `folded`."""
    elements: list[frozenset[str]] = []
    at = 0
    while at < len(folded):
        end = _piece_end(folded, at)
        elements.append(_spellings(folded[at:end]))
        at = end
    return elements


def _piece_end(folded: str, at: int) -> int:
    """Where the piece that begins at `at` ends: one character, or all over which single characters may fold.

    In "flussschiff" the three s are one piece, for ß may stand for the first two or the last two.
    """
    start, end = at, at + 1
    while start < end:
        end = max([end, *(start + size for size in (2, 3) if folded[start : start + size] in _unfolded())])
        start += 1
    return min(end, at + PIECE_CHARACTERS)


@lru_cache(SEEN_LIMIT)
def _spellings(piece: str) -> frozenset[str]:
    """Every string whose case folding is `piece`; for a space, whatever stands for a space."""
    if piece == " ":
        return frozenset(SPACES)
    if not piece:
        return frozenset({""})
    return frozenset(
        first + rest
        for size in range(1, len(piece) + 1)
        for first in (*_unfolded().get(piece[:size], ()), *(piece[:size] if size == 1 else ()))
        for rest in _spellings(piece[size:])
    )


@cache
def _unfolded() -> dict[str, tuple[str, ...]]:
    """Folded text → the single characters, other than itself, that fold to it."""
    table: defaultdict[str, list[str]] = defaultdict(list)
    for begin, end in _CASED:
        for character in map(chr, range(begin, end)):
            if (folded := character.casefold()) != character:
                table[folded].append(character)
    return {folded: tuple(characters) for folded, characters in table.items()}


@lru_cache(SEEN_LIMIT)
def _encoded(element: frozenset[str], encoding: Encoding) -> tuple[bytes, ...]:
    """The spellings in bytes, in a fixed order. Beyond ASCII, UTF-8 may stand percent-encoded (RFC 3986)."""
    spelled = {text.encode(encoding) for text in element}
    if encoding is Encoding.UTF_8:
        quoted = [quote(text) for text in element if not text.isascii()]
        spelled |= {form.encode() for text in quoted for form in (text, text.lower())}
    return tuple(sorted(spelled))


def _alternatives(spelled: tuple[bytes, ...]) -> bytes:
    single = [_escaped(text[0]) for text in spelled if len(text) == 1]
    several = [re.escape(text) for text in spelled if len(text) > 1]
    if single:
        several.insert(0, b"[" + b"".join(single) + b"]")
    return several[0] if len(several) == 1 else b"(?:" + b"|".join(several) + b")"


def _escaped(byte: int) -> bytes:
    return b"\\x%02x" % byte


def _borders(encoding: Encoding) -> tuple[bytes, bytes]:
    """What must not stand before and after a whole word; at most BORDER_BYTES on either side."""
    if encoding is Encoding.UTF_8:
        return b"(?<!" + _WORD_BYTE + b")", b"(?!" + _WORD_BYTE + b")"
    return rb"(?<!" + _WORD_BYTE + rb"\x00)", rb"(?!" + _WORD_BYTE + rb"\x00)"
