"""PDF documents (ISO 32000-2), stream by stream as they go by: their text, and whatever else was compressed in them.

    … << dictionary >> stream ──► FlateDecode, ASCII85Decode undone ──► text is shown? its strings : as it is
    the rest stands in the file as it is, and whoever reads the file has seen it
    text in fonts with numbers of their own ──► put together at the end (`pdf_fonts`)

It follows no reference and needs no table of contents, so damaged ones don't matter.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

from mitmsec_addons.containers import Entry, Event, Mark, Unreadable
from mitmsec_addons.inflating import Damaged, Deflated, Stored, Unfolding
from mitmsec_addons.pdf_fonts import OBJECTS_LIMIT_BYTES, PdfFonts
from mitmsec_addons.pdf_text import PdfText

DICTIONARY_LIMIT_BYTES = 4096
_STREAM = re.compile(rb"(?<!end)stream(?:\r\n|\n)")
_END = b"endstream"
_FILTER = re.compile(rb"/Filter\s*(\[[^\]]*\]|/\w+)")
_NAME = re.compile(rb"/(\w+)")
_OBJECT = re.compile(rb"(\d+)\s+\d+\s+obj\b")
_OBJECTS = re.compile(rb"/Type\s*/ObjStm\b")
_NO_TEXT = re.compile(  # pictures, font programs, tables of contents
    rb"/Subtype\s*/(?:Image|Type1C|CIDFontType0C|OpenType)\b|/Length1\b|/Type\s*/XRef\b"
)
_PICTURES = frozenset({b"DCTDecode", b"JPXDecode", b"CCITTFaxDecode", b"JBIG2Decode", b"DCT", b"CCF"})


class PdfReader:
    """One document. Holds a dictionary, the windows of its decompressors, and pieces of text."""

    def __init__(self) -> None:
        self._held = b""
        self._inside: _Stream | None = None
        self._fonts = PdfFonts()
        self._is_told = False  # that some stream is damaged: in a document that is encrypted, all are

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        self._held += data
        while self._held:
            if self._inside is None:
                if (found := _STREAM.search(self._held)) is None:
                    self._fonts.objects(self._held[:-DICTIONARY_LIMIT_BYTES])
                    self._held = self._held[-DICTIONARY_LIMIT_BYTES:]
                    return
                before, self._held = self._held[: found.start()], self._held[found.end() :]
                self._fonts.objects(before)
                self._inside = _opened(before[-DICTIONARY_LIMIT_BYTES:], self._fonts)
                yield from self._opening(self._inside)
            else:
                at = self._held.find(_END)
                take = at if at >= 0 else max(len(self._held) - len(_END) + 1, 0)
                data, self._held = self._held[:take], self._held[take:]
                yield from self._unfolded(self._inside, data)
                if at < 0:
                    return
                yield from self._closing(self._inside)

    def close(self) -> Iterator[Event]:
        """A stream that has no end."""
        if self._inside is not None:
            yield from self._unfolded(self._inside, self._held)
            yield from self._closing(self._inside)
        else:
            self._fonts.objects(self._held)
        text = [*filter(None, self._fonts.text())]
        if text:
            yield Entry("text")
            yield from text
            yield Mark.ENDED
        if self._fonts.has_more:
            yield from self._once("it is too long for its fonts to be read")

    def _opening(self, stream: _Stream) -> Iterator[Event]:
        if stream.unfoldings is not None:
            yield Entry(stream.name)
        elif stream.why:
            yield from self._once(stream.why)

    def _unfolded(self, stream: _Stream, data: bytes) -> Iterator[Event]:
        if stream.unfoldings is None:
            return
        try:
            for piece in _through(stream.unfoldings, data):
                stream.keep(piece)
                yield from filter(None, stream.text.feed(piece))
        except Damaged as error:
            stream.unfoldings = None
            yield from self._once(str(error))

    def _closing(self, stream: _Stream) -> Iterator[Event]:
        self._inside = None
        yield from filter(None, stream.text.close())
        stream.learn(self._fonts)
        yield Mark.ENDED

    def _once(self, why: str) -> Iterator[Event]:
        if not self._is_told:
            yield Unreadable(f"some of the document: {why}")
        self._is_told = True


class _Stream:
    """`unfoldings` undo its filters in order; None: it is passed over, because of `why` or because it has no text."""

    def __init__(
        self, number: int, dictionary: bytes, unfoldings: list[Unfolding] | None, fonts: PdfFonts, why: str = ""
    ) -> None:
        self.name, self.unfoldings, self.why = f"object {number}", unfoldings, why
        self._number, self._dictionary = number, dictionary
        self._kept: list[bytes] | None = []  # of what may say something about fonts
        self._kept_bytes = 0
        self.text = PdfText(fonts.shown)

    def keep(self, piece: bytes) -> None:
        """A piece of it, unfolded."""
        self._kept_bytes += len(piece)
        if self._kept is not None and self._kept_bytes <= OBJECTS_LIMIT_BYTES:
            self._kept.append(piece)
        else:
            self._kept = None

    def learn(self, fonts: PdfFonts) -> None:
        """What it says about fonts, now that it is complete."""
        content = b"".join(self._kept or ())
        if _OBJECTS.search(self._dictionary):
            fonts.object_stream(self._dictionary, content)
        elif b"begincmap" in content[:4096]:
            fonts.explained(self._number, content)


def _opened(before: bytes, fonts: PdfFonts) -> _Stream:
    """What the dictionary, at the end of `before`, says of the stream behind it."""
    objects = [*_OBJECT.finditer(before)]
    dictionary = before[objects[-1].end() :] if objects else before
    number = int(objects[-1][1][:8]) if objects else 0
    filters = _NAME.findall(found[1]) if (found := _FILTER.search(dictionary)) else []
    if _NO_TEXT.search(dictionary) or _PICTURES & {*filters}:
        return _Stream(number, dictionary, None, fonts)
    made: list[Unfolding] = []
    for one in filters:
        if one in (b"FlateDecode", b"Fl"):
            made.append(Deflated(15))
        elif one in (b"ASCII85Decode", b"A85"):
            made.append(Ascii85())
        else:
            return _Stream(
                number, dictionary, None, fonts, f"packed by {one[:20].decode('latin-1')}, which is not known here"
            )
    return _Stream(number, dictionary, made or [Stored()], fonts)


def _through(unfoldings: list[Unfolding], data: bytes) -> Iterator[bytes]:
    first, *others = unfoldings
    if first.ended:
        return
    for piece in first.feed(data):
        if others:
            yield from _through(others, piece)
        else:
            yield piece


class Ascii85:
    """ASCII85Decode (ISO 32000-2, 7.4.3)."""

    def __init__(self) -> None:
        self._held = b""
        self.ended, self.unused = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        text, tilde, _ = b"".join(data.split()).partition(b"~")
        self._held += text.replace(b"z", b"!!!!!")
        self.ended = bool(tilde)
        whole = len(self._held) if self.ended else len(self._held) // 5 * 5
        group, self._held = self._held[:whole], self._held[whole:]
        try:
            yield base64.a85decode(group)
        except ValueError:
            raise Damaged("damaged") from None
