"""Office documents in ZIP archives (OOXML: ECMA-376; OpenDocument, EPUB): their text, and whatever else lies in them.

    an entry with text ──► expat ──► its characters, a line for each paragraph, row and cell
    any other entry ──► as it is

What is written in one run of text is one run here, however the document marks it up. What stands in attributes (the
description of a picture) and comments follows the line, but for short numbers. A document type declaration is
refused: none of these formats has one with entities, and bombs are made of those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from xml.parsers import expat

from mitmsec_addons.containers import Entry, Event, Mark, Passed, Unreadable
from mitmsec_addons.inflating import Damaged
from mitmsec_addons.zip_reader import ZipReader

DEPTH_LIMIT = 256  # of elements in elements
ASIDE_LIMIT_CHARACTERS = 1 << 16  # of attributes and comments that wait for the end of a line
_TEXTS = re.compile(
    r"/?(?:(?:word|xl|ppt|docprops)/.+\.xml|(?:.*/)?(?:content|meta|styles)\.xml|.*\.xhtml)", re.IGNORECASE
)
_SHORT_NUMBER = re.compile(r"(?=.*[0-9])[0-9A-F.-]{1,8}|")  # widths, styles, marks of revisions
_OF_TEXT = ("p", "br", "tr", "row", "si", "c", "h", "tab")
_OF_PROPERTIES = (
    "category", "Company", "contentStatus", "creator", "description", "initial-creator", "keyword", "keywords",
    "lastModifiedBy", "lpstr", "lpwstr", "Manager", "property", "subject", "title", "user-defined",
)  # fmt: skip
_LINES = frozenset(_OF_TEXT + _OF_PROPERTIES)


class OfficeReader:
    """One document. Of an archive that is not `whole` a document, the text of those entries that are named like one's.

    `at` bytes stood before what is fed.
    """

    def __init__(self, whole: bool = True, at: int = 0) -> None:
        self._zip = ZipReader((lambda name: True) if whole else _has_text, at)
        self._is_one = whole
        self._text: XmlText | None = None
        self._is_bad = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        for event in self._zip.feed(data):
            yield from self._one(event)

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
        for event in self._zip.close():
            yield from self._one(event)

    def _one(self, event: Event) -> Iterator[Event]:
        match event:
            case Entry(name=name):
                self._text = XmlText() if _has_text(name) else None
                self._is_bad, self._is_one = False, True
                yield event
            case bytes() if self._text is not None:
                yield from self._characters(self._text.feed, event)
            case Mark.ENDED:
                if self._text is not None:
                    yield from self._characters(self._text.finish, b"")
                self._text = None
                yield event
            case Unreadable():
                self._is_bad = True  # that its XML ends too early need not be told as well
                yield from (event,) if self._is_one else ()
            case bytes() | Passed():
                yield event

    def _characters(self, read: Callable[[bytes], bytes], data: bytes) -> Iterator[Event]:
        if self._is_bad:
            return
        try:
            characters = read(data)
        except Damaged as error:
            self._is_bad = True
            yield Unreadable(str(error))
            return
        yield characters


def _has_text(name: str) -> bool:
    return _TEXTS.fullmatch(name) is not None


class XmlText:
    """The characters of an XML document, without its marks; attributes and comments in lines of their own."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        if hasattr(self._parser, "SetReparseDeferralEnabled"):
            self._parser.SetReparseDeferralEnabled(False)  # else it keeps what it was fed for later
        self._found: list[str] = []
        self._aside: list[str] = []
        self._aside_characters = 0
        self._depth = 0
        self._is_empty, self._is_in_line = True, False
        self._parser.CommentHandler = self._beside
        self._parser.ProcessingInstructionHandler = lambda target, data: self._beside(data)
        self._parser.CharacterDataHandler = self._found.append
        self._parser.StartElementHandler = self._begins
        self._parser.EndElementHandler = self._ends
        self._parser.StartDoctypeDeclHandler = self._refuse

    def feed(self, data: bytes) -> bytes:
        """UTF-8. Raises Damaged."""
        self._is_empty = self._is_empty and not data
        return self._parsed(data, False)

    def finish(self, data: bytes = b"") -> bytes:
        """The rest, at the end. Raises Damaged, also where there is no end."""
        return b"" if self._is_empty else self._parsed(data, True)

    def _parsed(self, data: bytes, is_end: bool) -> bytes:
        try:
            self._parser.Parse(data, is_end)
        except expat.ExpatError:
            raise Damaged("its XML is damaged") from None
        if is_end:
            self._line()
        text = "".join(self._found)
        self._is_in_line = not text.endswith("\n") if text else self._is_in_line
        self._found.clear()
        return text.encode("utf-8", "replace")

    def _begins(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise Damaged(f"its XML is more than {DEPTH_LIMIT} elements deep")
        for value in attributes.values():
            if not _SHORT_NUMBER.fullmatch(value):
                self._beside(value)

    def _ends(self, name: str) -> None:
        self._depth -= 1
        if name.rpartition(" ")[2] in _LINES:
            self._found.append("\n")
            self._line()

    def _beside(self, text: str) -> None:
        """Not in the middle of what is written: at the end of its line."""
        self._aside += (text, "\n")
        self._aside_characters += len(text) + 1
        if self._aside_characters > ASIDE_LIMIT_CHARACTERS:
            self._found.append("\n")
            self._line()

    def _line(self) -> None:
        is_in_line = not self._found[-1].endswith("\n") if self._found else self._is_in_line
        if self._aside and is_in_line:
            self._found.append("\n")
        self._found += self._aside
        self._aside.clear()
        self._aside_characters = 0

    def _refuse(self, name: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            raise Damaged("its XML declares entities")
