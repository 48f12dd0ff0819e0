"""Mail (MIME: RFC 5322, 2045, 2046), its parts told apart and decoded as it goes by.

header fields, empty line ──► multipart: its parts, each with such a head    ──► …
                          └─► anything else: base64 or quoted-printable undone ──► Opened, bytes*, ENDED

What stands around parts is told as well, as an aside, so nothing of a mail is left out but boundaries; so is base64
that not all programs read in the same way. Words of fields that are encoded (RFC 2047) stand decoded behind their head.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import BytesHeaderParser

from mitmsec.core.body_parts import EPILOGUE, NAME_LIMIT_CHARACTERS, PARTS_LIMIT, Event, Mark, Opened, Unreadable
from mitmsec.core.mime_base64 import LenientBase64, from_base64
from mitmsec.core.mime_quoted import QuotedPrintable

HEAD_LIMIT_BYTES = 1 << 16  # header fields of one part
HEAD_LIMIT_LINES = 2000  # a line of them takes as long as some 30 bytes
LINE_LIMIT_BYTES = 1 << 16  # what is longer is read in pieces
BOUNDARIES_LIMIT = 16
FIELD_LIMIT_BYTES = 1 << 14  # of those that say what a part is; the library takes long for them
PARAMETERS_LIMIT = 64  # of a field: likewise, with the square of them
ENCODINGS = frozenset({"", "7bit", "8bit", "binary", "base64", "quoted-printable"})
PREAMBLE = "preamble"
UNDECODED = "undecoded"
_AS_THEY_ARE = ENCODINGS - {"base64", "quoted-printable"}
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:|[ \t]|>?From ")
_ABOUT = re.compile(rb"(content-(?:type|disposition|transfer-encoding))[ \t]*:", re.IGNORECASE)
_MAILS = frozenset({"message/rfc822", "message/global", "message/news"})
_DIGEST = "multipart/digest"  # whose parts are mails where they say nothing else (RFC 2046 §5.1.5)
_BARE_CR = re.compile(rb"\r(?!\n)")
_MULTIPART = re.compile(rb"[^;]*multipart", re.IGNORECASE)
_TYPE = re.compile(rb"\s*multipart/[\w.+-]+\s*", re.IGNORECASE)
_PARAMETER = re.compile(rb';\s*([\w.+-]+(?:\*\d*\*?)?)\s*=\s*("[^"\\]*"|[^\s;()"\\,]+)\s*')
_COMMENT = re.compile(r"\([^()]*\)")
_BETWEEN_WORDS = re.compile(rb"\?=[ \t\r\n]{1,80}=\?")
_ENCODED_WORD = re.compile(rb"=\?[^?\s]{1,40}\?([bBqQ])\?([^?\s]{0,1024})\?=")


class MimeParts:
    """One mail. Holds the fields of a part, and a line. `nested`: a mail within it is taken apart, too."""

    def __init__(self, *, nested: bool = False) -> None:
        self._nested = nested
        self._held = b""
        self._head: bytearray | None = bytearray()  # fields being read
        self._head_lines = 0
        self._boundaries: list[bytes] = []
        self._digests: list[bool] = []  # for each of them
        self._is_in_digest = False  # the part whose head is being read
        self._decode: Callable[[bytes], bytes] | None = None  # for the part that is read; None: nothing but an aside
        self._is_open = False  # the aside, or what there is instead of a part, has been told
        self._decoder: LenientBase64 | QuotedPrintable | None = None  # by which that is decoded
        self._line_goes_on = False
        self._number = self._count = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        yield from self._lines(self._held + data)

    def close(self) -> Iterator[Event]:
        """The last line, which need have no end, and whether parts are missing."""
        rest, self._held = self._held, b""
        if rest:
            yield from self._line(rest)
        head, self._head = self._head, None
        if head:
            yield from self._begin_part(bytes(head))
        yield from self._end_part()
        if self._boundaries:
            yield Unreadable("cut off: its last part has no end")

    def _lines(self, data: bytes) -> Iterator[Event]:
        at = 0
        while (end := self._piece_end(data, at)) > at:
            if self._decode is not None and not self._may_be_boundary(data, at):
                self._line_goes_on = not data.endswith(b"\n", at, end)
                yield self._decode(data[at:end])
            else:
                yield from self._line(data[at:end])
            at = end
        self._held = data[at:]

    def _piece_end(self, data: bytes, at: int) -> int:
        """Where what is read next ends: a line, or as many as no boundary can stand in. `at`: more must come."""
        line = data.find(b"\n", at) + 1
        if not line or line - at > LINE_LIMIT_BYTES:
            return at + LINE_LIMIT_BYTES if len(data) - at > LINE_LIMIT_BYTES else at
        if self._decode is None or self._may_be_boundary(data, at):
            return line
        boundary = data.find(b"\n--", at) + 1 if self._boundaries else 0
        return boundary or data.rfind(b"\n", at) + 1

    def _may_be_boundary(self, data: bytes, at: int) -> bool:
        return bool(self._boundaries) and data.startswith(b"--", at)

    def _line(self, line: bytes) -> Iterator[Event]:
        begins, self._line_goes_on = not self._line_goes_on, not line.endswith(b"\n")
        if begins and line.startswith(b"--") and (found := self._boundary(line)) is not None:
            yield from self._end_part()
            del self._boundaries[found + 1 :], self._digests[found + 1 :]
            if line[2 + len(self._boundaries[found]) :].startswith(b"--"):
                del self._boundaries[found:], self._digests[found:]
                self._head = None
            else:
                self._head, self._head_lines = bytearray(), 0
                self._is_in_digest = self._digests[found]
        elif self._head is not None:
            yield from self._field(line)
        elif self._decode is not None:
            yield self._decode(line)
        elif self._is_open or line.strip():
            yield from self._aside(line, EPILOGUE)

    def _aside(self, data: bytes, name: str) -> Iterator[Event]:
        if not self._is_open:
            self._is_open = True
            yield Opened(name=name, at=0, content_type="text/plain", is_aside=True)
        yield data

    def _boundary(self, line: bytes) -> int | None:
        """Which of the open ones this line is."""
        text = line[2:].rstrip(b" \t\r\n")
        for at in reversed(range(len(self._boundaries))):
            if text in (self._boundaries[at], self._boundaries[at] + b"--"):
                return at
        return None

    def _field(self, line: bytes) -> Iterator[Event]:
        head = self._head if self._head is not None else bytearray()
        if not line.strip(b"\r\n"):
            self._head = None
            yield from self._begin_part(bytes(head))
        elif not head and _FIELD.match(line) is None:  # a part without fields, and without the line behind them
            self._head = None
            yield from self._begin_part(b"")
            yield from self._line(line)
        elif len(head) + len(line) > HEAD_LIMIT_BYTES or self._head_lines >= HEAD_LIMIT_LINES:
            self._head = None
            yield Unreadable(f"more than {HEAD_LIMIT_BYTES} bytes or {HEAD_LIMIT_LINES} lines of header fields")
            yield from self._aside(bytes(head) + line, PREAMBLE)
        else:
            head += line
            self._head_lines += 1

    def _begin_part(self, head: bytes) -> Iterator[Event]:
        self._count += 1
        if self._count > PARTS_LIMIT:
            yield from self._give_up(head)
            return
        about = _about(head)
        self._is_open = True
        if any(len(field) > FIELD_LIMIT_BYTES or field.count(b";") > PARAMETERS_LIMIT for field in about):
            why = f"a header field of more than {PARAMETERS_LIMIT} parameters or {FIELD_LIMIT_BYTES} bytes"
            yield from self._undecoded(head, why)
            return
        fields = BytesHeaderParser().parsebytes(b"".join(about))
        if self._is_in_digest:
            fields.set_default_type("message/rfc822")
            self._is_in_digest = False
        encoding = _COMMENT.sub(" ", str(fields.get("content-transfer-encoding", ""))).strip('"; \t\r\n').lower()
        boundary, doubt = _text(fields.get_boundary), _doubt(head, fields, encoding)
        if fields.get_content_maintype() == "multipart" and boundary:
            yield _opened(PREAMBLE, head, fields, is_aside=True)
            if doubt:
                yield Unreadable(doubt)
            if len(self._boundaries) < BOUNDARIES_LIMIT:
                self._boundaries.append(boundary.encode("latin-1", "replace"))
                self._digests.append(fields.get_content_type() == _DIGEST)
            else:
                yield Unreadable(f"multipart in multipart, more than {BOUNDARIES_LIMIT} times")
            return
        is_mail = self._nested and fields.get_content_type() in _MAILS
        if is_mail and encoding in _AS_THEY_ARE:
            yield _opened(PREAMBLE, head, fields, is_aside=True)
            if doubt:
                yield Unreadable(doubt)
            self._head, self._head_lines = bytearray(), 0
            return
        self._number += 1
        self._decode = self._decoding(encoding)
        yield _opened(f"part {self._number}", head, fields)
        if is_mail or doubt:
            yield Unreadable(doubt or "a mail that is encoded as a whole")
        if encoding not in ENCODINGS:
            yield Unreadable("its transfer encoding is not known here")

    def _give_up(self, head: bytes) -> Iterator[Event]:
        """All that follows is shown as it is."""
        self._boundaries.clear()
        self._digests.clear()
        self._decode = bytes
        yield Opened(name=EPILOGUE, at=0, head=head, is_aside=True)
        yield Unreadable(f"more than {PARTS_LIMIT} parts")

    def _undecoded(self, head: bytes, why: str) -> Iterator[Event]:
        """A part that is shown as it is, and not read beyond that."""
        self._number += 1
        self._decode = bytes
        yield Opened(name=f"part {self._number}", at=0, head=head)
        yield Unreadable(why)

    def _decoding(self, encoding: str) -> Callable[[bytes], bytes]:
        match encoding:
            case "base64":
                self._decoder = LenientBase64()
            case "quoted-printable":
                self._decoder = QuotedPrintable()
            case _:
                return bytes
        return self._decoder.feed

    def _end_part(self) -> Iterator[Event]:
        if self._decode is not None:
            decoder, self._decode, self._decoder = self._decoder, None, None
            if decoder is not None:
                yield decoder.close()
            if decoder is not None and decoder.is_strange:
                what = "base64" if isinstance(decoder, LenientBase64) else "quoted-printable"
                yield Unreadable(f"{what} that not all programs read in the same way")
            yield Mark.ENDED
            if decoder is not None and decoder.strange:
                yield Opened(name=UNDECODED, at=0, content_type="text/plain", is_aside=True)
                yield decoder.strange
        self._is_open = False


def _doubt(head: bytes, fields: Message, encoding: str) -> str:
    """Why some programs may take a part for something else; "": there is no reason."""
    told = [line[: line.find(b":")].strip().lower() for line in head.split(b"\n") if _ABOUT.match(line)]
    if len(set(told)) < len(told):
        return "a field that says twice what it is"
    if _BARE_CR.search(head):
        return "a CR within its header fields that ends no line"
    said = str(fields.get("content-type", "")).encode("utf-8", "surrogateescape")
    if _MULTIPART.match(said) is None:
        return ""
    if not _is_plain(said):
        return "a multipart whose boundary not all programs read in the same way"
    return "" if encoding in _AS_THEY_ARE else "a multipart that is encoded as a whole"


def _is_plain(said: bytes) -> bool:
    """All programs find the same boundary in this type."""
    begin = _TYPE.match(said)
    at, boundaries = 0 if begin is None else begin.end(), list[tuple[bytes, bytes]]()
    while (parameter := _PARAMETER.match(said, at)) is not None:
        at = parameter.end()
        if parameter[1].lower().startswith(b"boundary"):
            boundaries.append((parameter[1].lower(), parameter[2].strip(b'"')))
    if begin is None or said[at:].strip(b"; \t\r\n") or len(boundaries) != 1:
        return False
    ((name, boundary),) = boundaries
    return name == b"boundary" and boundary.isascii() and boundary == boundary.strip() != b""


def _about(head: bytes) -> list[bytes]:
    """The fields that say what a part is, the first of each. What is no field is passed over, as by many programs."""
    found, goes_on = dict[bytes, bytearray](), bytearray()
    for line in head.splitlines(keepends=True):
        if line[0] in b" \t":
            goes_on += line
        elif (begin := _ABOUT.match(line)) is not None:
            goes_on = bytearray(begin[1] + b":" + line[begin.end() :])
            found.setdefault(begin[1].lower(), goes_on)
        elif _FIELD.match(line):
            goes_on = bytearray()
    return [*map(bytes, found.values())]


def _opened(name: str, head: bytes, fields: Message, *, is_aside: bool = False) -> Opened:
    called = _decoded(_text(fields.get_filename).encode("utf-8", "replace")).decode("utf-8", "replace")
    shown = "".join(letter if letter.isprintable() else "?" for letter in called)
    decoded = _decoded(head)
    return Opened(
        name=shown[-NAME_LIMIT_CHARACTERS:] or name,
        at=0,
        head=head if decoded == head else head + decoded,
        content_type=fields.get_content_type(),
        file_name=called,
        is_aside=is_aside,
    )


def _decoded(text: bytes) -> bytes:
    """Its encoded words (RFC 2047) as their charset has them."""
    return _ENCODED_WORD.sub(_word, _BETWEEN_WORDS.sub(b"?==?", text)) if b"=?" in text else text


def _word(found: re.Match[bytes]) -> bytes:
    if found[1] in b"bB":
        return from_base64(found[2])
    return binascii.a2b_qp(found[2], header=True)


def _text(ask: Callable[[], str | None]) -> str:
    """The library raises for some fields that are broken."""
    try:
        return str(ask() or "")
    except (ValueError, LookupError, TypeError, AttributeError, IndexError):
        return ""
