"""PDF documents (ISO 32000-2), stream by stream as they go by: their text, and whatever else was compressed in them.

    … << dictionary >> stream ──► FlateDecode, ASCII85Decode undone ──► text is shown? its strings : as it is
    the rest stands in the file as it is, and whoever reads the file has seen it
    text in fonts with numbers of their own ──► put together at the end (`pdf_fonts`)
    its properties                          ──► likewise (`pdf_properties`); XMP is a stream, and shown as `metadata`

It follows no reference and needs no table of contents, so damaged ones don't matter. Nothing is passed over because a
dictionary says what it is: what is no text is shown as it is, and where a filter is not clear, its first bytes decide.
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
_STREAM = re.compile(rb"(?<!end)stream[ \t\f\0]{0,64}(?:%[^\r\n]{0,256})?(?:\r\n|\n|\r)")  # as lenient as readers are
_END = b"endstream"
_FILTER = re.compile(rb"/Filter\s*(\[[^\]]*\]|/\w+)")
_ANY_FILTER = re.compile(rb"/Filter(?!\w)")
_ENCRYPT = re.compile(rb"/Encrypt(?!\w)")
_ESCAPED = re.compile(rb"#([0-9A-Fa-f]{2})")
_NAME = re.compile(rb"/(\w+)")
_OBJECT = re.compile(rb"(\d+)\s+\d+\s+obj\b")
_OBJECTS = re.compile(rb"/Type\s*/ObjStm\b")
_METADATA = re.compile(rb"/Type\s*/Metadata\b")  # XMP (14.3.2)
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
                found = _STREAM.search(self._held)
                yield from self._encrypted(self._held if found is None else self._held[: found.start()])
                if found is None:
                    self._fonts.objects(self._held[:-DICTIONARY_LIMIT_BYTES])
                    self._held = self._held[-DICTIONARY_LIMIT_BYTES:]
                    return
                if found.end() == len(self._held):
                    return  # another end of a line may follow
                before, self._held = self._held[: found.start()], self._held[found.end() :]
                self._fonts.objects(before)
                self._inside = _opened(before, self._fonts)
                yield Entry(self._inside.name)
            else:
                at = self._held.find(_END)
                take = at if at >= 0 else max(len(self._held) - len(_END) + 1, 0)
                data, self._held = self._held[:take], self._held[take:]
                yield from self._unfolded(self._inside, data)
                if at < 0:
                    return
                if self._inside.goes_on:  # the word stands in what is packed
                    data, self._held = self._held[: len(_END)], self._held[len(_END) :]
                    yield from self._unfolded(self._inside, data)
                else:
                    yield from self._closing(self._inside)

    def close(self) -> Iterator[Event]:
        """A stream that has no end."""
        if self._inside is not None:
            yield from self._unfolded(self._inside, self._held)
            yield from self._closing(self._inside)
        else:
            yield from self._encrypted(self._held)
            self._fonts.objects(self._held)
        yield from _entry("text", self._fonts.text())
        yield from _entry("properties", self._fonts.properties())
        if self._fonts.has_more:
            yield from self._once("it is too long for all of its fonts or properties to be read")

    def _encrypted(self, objects: bytes) -> Iterator[Event]:
        if not self._is_told and _ENCRYPT.search(_unescaped(objects)):
            yield from self._once("encrypted")

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
        if stream.is_cut_off:
            yield from self._once("damaged")
        stream.learn(self._fonts)
        yield Mark.ENDED

    def _once(self, why: str) -> Iterator[Event]:
        if not self._is_told:
            yield Unreadable(f"some of the document: {why}")
        self._is_told = True


class _Stream:
    """`unfoldings` undo its filters in order; None: it is damaged."""

    def __init__(self, number: int, dictionary: bytes, unfoldings: list[Unfolding] | None, fonts: PdfFonts) -> None:
        self.name = "metadata" if _METADATA.search(dictionary) else f"object {number}"
        self.unfoldings = unfoldings
        self._number, self._dictionary = number, dictionary
        self._kept: list[bytes] | None = []  # of what may say something about fonts
        self._kept_bytes = 0
        self.text = PdfText(fonts.shown)

    @property
    def goes_on(self) -> bool:
        """By its own account it has no end yet."""
        first = self.unfoldings[0] if self.unfoldings else None
        return isinstance(first, Deflated | _Guessed) and first.goes_on

    @property
    def is_cut_off(self) -> bool:
        """It ended before its own account."""
        return self.goes_on or bool(
            self.unfoldings and isinstance(self.unfoldings[0], Ascii85) and not self.unfoldings[0].ended
        )

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


def _entry(name: str, pieces: Iterator[bytes]) -> Iterator[Event]:
    """Where there is anything in it."""
    is_open = False
    for piece in pieces:
        if piece and not is_open:
            is_open = True
            yield Entry(name)
        yield piece
    if is_open:
        yield Mark.ENDED


def _opened(before: bytes, fonts: PdfFonts) -> _Stream:
    """What the dictionary, at the end of `before`, says of the stream behind it."""
    dictionary = _unescaped(before[-DICTIONARY_LIMIT_BYTES:].rpartition(b"endobj")[2])
    objects = [*_OBJECT.finditer(dictionary)]
    number = int(objects[-1][1][:8]) if objects else 0
    told = _FILTER.findall(dictionary)
    if not objects or len(told) != len(_ANY_FILTER.findall(dictionary)) or len(told) > 1:
        return _Stream(number, dictionary, [_Guessed("its filters are not clear")], fonts)
    return _Stream(number, dictionary, _unfoldings(_NAME.findall(told[0]) if told else []), fonts)


def _unfoldings(filters: list[bytes]) -> list[Unfolding]:
    made: list[Unfolding] = []
    for one in filters:
        if one in (b"FlateDecode", b"Fl"):
            made.append(Deflated(15))
        elif one in (b"ASCII85Decode", b"A85"):
            made.append(Ascii85())
        elif one in _PICTURES:
            return [*made, _Guessed()]
        else:
            return [*made, _Guessed(f"packed by {one[:20].decode('latin-1')}, which is not known here")]
    return made or [_Guessed()]


def _unescaped(names: bytes) -> bytes:
    """`/Filter` of `/#46ilter` (7.3.5)."""
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), names) if b"#" in names else names


def _through(unfoldings: list[Unfolding], data: bytes) -> Iterator[bytes]:
    first, *others = unfoldings
    if first.ended:
        return
    for piece in first.feed(data):
        if others:
            yield from _through(others, piece)
        else:
            yield piece


class _Guessed:
    """What is deflated as its first bytes say, or else as it is: that stands in the file, and nothing of it is missed.

    Raises Damaged with `why`, where there is one, for the second.
    """

    def __init__(self, why: str = "") -> None:
        self._why = why
        self._held = b""
        self._unfolding: Unfolding | None = None
        self.ended, self.unused = False, b""

    @property
    def goes_on(self) -> bool:
        return isinstance(self._unfolding, Deflated) and self._unfolding.goes_on

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._unfolding is None:
            data = self._held = self._held + data
            if len(data) < 2:
                return
            self._unfolding = (
                Deflated(15) if data[0] & 0x8F == 8 and not int.from_bytes(data[:2], "big") % 31 else Stored()
            )
            self._held = b""
        if self._why and not isinstance(self._unfolding, Deflated):
            raise Damaged(self._why)
        try:
            yield from self._unfolding.feed(data)
            self.ended = self._unfolding.ended
        except Damaged:
            if self._why:
                raise Damaged(self._why) from None
            self._unfolding = Stored()


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
