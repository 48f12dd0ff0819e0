"""Text in fonts that number their glyphs in a way of their own, put together once all of a PDF is known.

    "/F4 12 Tf <0014 0017> Tj"      what was shown, and by which font
    "/F4 6 0 R"                     which object that font is         (somewhere among the objects)
    "6 0 obj … /ToUnicode 17 0 R"   where its numbers are explained   (likewise, or in an object stream)
    17: "<0014> <0034>"             how (a CMap: ISO 32000-2, 9.10.3)

Names of fonts are taken to mean the same on all pages. What is kept is bounded; that there is more is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from mitmsec_addons.pdf_properties import properties

OBJECTS_LIMIT_BYTES = 4 << 20
SHOWN_LIMIT_BYTES = 2 << 20
OBJECTS_LIMIT = 20_000  # in one object stream
CODES_LIMIT = 1 << 16  # in all fonts together, several times what a document has
_REFERENCE = re.compile(rb"/([A-Za-z][\w+.-]{0,40})\s+(\d{1,8})\s+\d{1,5}\s+R\b")
_OBJECT = re.compile(rb"(\d{1,8})\s+\d{1,5}\s+obj\b")
_SECTION, _SECTION_END = re.compile(rb"beginbf(char|range)"), b"endbf"
_CODE = re.compile(rb"<([0-9A-Fa-f\s]*)>|(\[)|(\])")
_FIRST, _NUMBER = re.compile(rb"/First\s+(\d{1,8})"), re.compile(rb"\d{1,9}")

type Codes = dict[int, str]


class PdfFonts:
    """One document's fonts, and what they showed."""

    def __init__(self) -> None:
        self._objects: list[bytes] = []
        self._objects_bytes = self._shown_bytes = 0
        self._explained: dict[int, Codes] = {}  # by the object that explains
        self._codes = 0
        self._shown: list[tuple[bytes, bytes]] = []  # the font's name, and a string; no name: what separates two
        self.has_more = False
        """There was more than is kept."""

    def objects(self, text: bytes) -> None:
        """Objects as they stand in the file."""
        if self._objects_bytes + len(text) > OBJECTS_LIMIT_BYTES:
            self.has_more = True
            return
        self._objects_bytes += len(text)
        self._objects.append(text)

    def object_stream(self, dictionary: bytes, content: bytes) -> None:
        """Objects of an object stream (7.5.7), as they would stand in the file."""
        first = int(found[1]) if (found := _FIRST.search(dictionary)) else 0
        numbers = [int(number[0]) for number in islice(_NUMBER.finditer(content[:first]), 2 * OBJECTS_LIMIT + 1)]
        self.has_more = self.has_more or len(numbers) > 2 * OBJECTS_LIMIT
        places = sorted(zip(numbers[1::2], numbers[::2], strict=False))
        ends = [at for at, _ in places[1:]] + [len(content)]
        for (at, number), end in zip(places, ends, strict=False):
            self.objects(b"\n%d 0 obj\n" % number + content[first + at : first + end])

    def explained(self, number: int, cmap: bytes) -> None:
        """What an object explains, if it is a CMap."""
        codes: Codes = {}
        for code, text in _explanations(cmap):
            if self._codes >= CODES_LIMIT:
                self.has_more = True
                return
            self._codes += 1  # said again, too: it takes as long
            codes[code] = text
        self._explained[number] = codes

    def shown(self, font: bytes, string: bytes) -> None:
        """A string that was shown, or, without a font, what separates two."""
        self._shown_bytes += len(string) + 1
        if self._shown_bytes > SHOWN_LIMIT_BYTES:
            self.has_more = True
            return
        self._shown.append((font, string))

    def properties(self) -> Iterator[bytes]:
        """Those of the document, as text."""
        if (yield from properties(b"".join(self._objects))):
            self.has_more = True

    def text(self) -> Iterator[bytes]:
        """All that was shown in such fonts, UTF-8. Nothing where there are none."""
        objects = b"".join(self._objects)
        explains = dict(self._explaining(objects))
        fonts = {
            name: self._explained[explains[number]]
            for name, number in ((name, int(number)) for name, number in _REFERENCE.findall(objects))
            if explains.get(number) in self._explained
        }
        if not fonts:
            return
        for font, string in self._shown:
            if (codes := fonts.get(font)) is not None:
                read = (codes.get(int.from_bytes(string[at : at + 2], "big"), "") for at in range(0, len(string), 2))
                yield "".join(read).encode("utf-8", "replace")
            elif not font:
                yield string

    def _explaining(self, objects: bytes) -> Iterator[tuple[int, int]]:
        """Which object is explained by which."""
        begins = [*_OBJECT.finditer(objects)]
        ends = [one.start() for one in begins[1:]] + [len(objects)]
        for begin, end in zip(begins, ends, strict=False):
            at = objects.find(b"/ToUnicode", begin.end(), end)
            if at >= 0 and (found := _REFERENCE.match(objects, at)):
                yield int(begin[1]), int(found[2])


def _explanations(cmap: bytes) -> Iterator[tuple[int, str]]:
    at = 0
    while (begin := _SECTION.search(cmap, at)) is not None:
        at = cmap.find(_SECTION_END, begin.end())
        if at < 0:
            return
        section = cmap[begin.end() : at]
        yield from _ranges(section) if begin[1] == b"range" else _chars(section)


def _codes(text: bytes) -> Iterator[bytes | str]:
    """Hexadecimal strings as bytes, brackets as they are."""
    for code in _CODE.finditer(text):
        digits = b"" if code[1] is None else b"".join(code[1].split())
        yield code[0].decode() if code[1] is None else bytes.fromhex((digits + b"0" * (len(digits) % 2)).decode())


def _chars(section: bytes) -> Iterator[tuple[int, str]]:
    codes = [code for code in _codes(section) if isinstance(code, bytes)]
    for code, text in zip(codes[::2], codes[1::2], strict=False):
        yield int.from_bytes(code[:2], "big"), _utf16(text)


def _ranges(section: bytes) -> Iterator[tuple[int, str]]:
    codes = _codes(section)
    for first, last, begin in zip(codes, codes, codes, strict=False):
        if not isinstance(first, bytes) or not isinstance(last, bytes):
            return
        span = range(int.from_bytes(first[:2], "big"), int.from_bytes(last[:2], "big") + 1)
        if isinstance(begin, bytes):
            text = _utf16(begin)
            for number, code in enumerate(span):
                yield code, text[:-1] + chr(min(ord(text[-1]) + number, 0x10FFFF)) if text else ""
        else:
            listed = iter(lambda: next(codes, "]"), "]")
            for code, one in zip(span, listed, strict=False):
                yield code, _utf16(one) if isinstance(one, bytes) else ""


def _utf16(text: bytes) -> str:
    return text[:64].decode("utf-16-be", "replace")
