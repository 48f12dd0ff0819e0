"""Office documents in ZIP archives (OOXML: ECMA-376; OpenDocument, EPUB): their text, and whatever else lies in them.

    an entry with text ──► expat ──► its characters, a line for each paragraph, row and cell
    any other entry ──► as it is

What is written in one run of text is one run here, however the document marks it up. A document type declaration is
refused: none of these formats has one with entities, and bombs are made of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.parsers import expat

from mitmsec_addons.containers import Entry, Event, Mark, Unreadable
from mitmsec_addons.inflating import Damaged
from mitmsec_addons.zip_reader import ZipReader

DEPTH_LIMIT = 256  # of elements in elements
_TEXTS = re.compile(
    r"(?:word/(?:document|header|footer|footnotes|endnotes|comments)\d*|xl/sharedStrings|xl/worksheets/[^/]+"
    r"|xl/comments\d*|ppt/(?:slides|notesSlides|comments)/[^/]+|docProps/[^/]+|content|meta|styles)\.xml"
    r"|.*\.xhtml",
)
_LINES = frozenset(
    [
        "p",
        "br",
        "tr",
        "row",
        "si",
        "c",
        "h",
        "tab",
        "lpstr",
        "title",
        "subject",
        "creator",
        "keywords",
        "description",
        "lastModifiedBy",
    ]
)


class OfficeReader:
    """One document."""

    def __init__(self) -> None:
        self._zip = ZipReader()
        self._text: XmlText | None = None
        self._is_bad = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        for event in self._zip.feed(data):
            yield from self._one(event)

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
        yield from self._zip.close()

    def _one(self, event: Event) -> Iterator[Event]:
        match event:
            case Entry(name=name):
                self._text = XmlText() if _TEXTS.fullmatch(name) else None
                self._is_bad = False
                yield event
            case bytes() if self._text is not None:
                yield from self._characters(self._text, event)
            case bytes() | Unreadable() | Mark.ENDED:
                yield event

    def _characters(self, text: XmlText, data: bytes) -> Iterator[Event]:
        if self._is_bad:
            return
        try:
            characters = text.feed(data)
        except Damaged as error:
            self._is_bad = True
            yield Unreadable(str(error))
            return
        yield characters


class XmlText:
    """The characters of an XML document, without its marks."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._found: list[str] = []
        self._depth = 0
        self._parser.CharacterDataHandler = self._found.append
        self._parser.StartElementHandler = self._begins
        self._parser.EndElementHandler = self._ends
        self._parser.StartDoctypeDeclHandler = self._refuse

    def feed(self, data: bytes) -> bytes:
        """UTF-8. Raises Damaged."""
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError:
            raise Damaged("its XML is damaged") from None
        text = "".join(self._found)
        self._found.clear()
        return text.encode("utf-8", "replace")

    def _begins(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise Damaged(f"its XML is more than {DEPTH_LIMIT} elements deep")

    def _ends(self, name: str) -> None:
        self._depth -= 1
        if name.rpartition(" ")[2] in _LINES:
            self._found.append("\n")

    def _refuse(self, name: str, system: str | None, public: str | None, has_internal_subset: int) -> None:
        if has_internal_subset:
            raise Damaged("its XML declares entities")
