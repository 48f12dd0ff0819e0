"""Mail (MIME: RFC 5322, 2045, 2046), its parts decoded line by line as they go by.

header fields, empty line ──► multipart: its parts, each with such a head    ──► …
                          └─► anything else: base64 or quoted-printable undone ──► Entry, bytes*, Ended
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from email.parser import BytesHeaderParser

from mitmsec_addons.containers import Entry, Event, Mark, Reader, Unreadable

HEAD_LIMIT_BYTES = 1 << 16  # header fields of one part
LINE_LIMIT_BYTES = 1 << 16  # what is longer is read in pieces
BOUNDARIES_LIMIT = 16
PARAMETERS_LIMIT = 256  # of a field: the library takes time with the square of them
_WITH_PARAMETERS = ("content-type", "content-disposition")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_MAIL_FIELDS = re.compile(
    rb"^(?:from|to|subject|date|received|return-path|delivered-to|mime-version|message-id|content-type)[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
ENCODINGS = frozenset({"", "7bit", "8bit", "binary", "base64", "quoted-printable"})
_COMMENT = re.compile(r"\([^()]*\)")
_FIELDS_ALONE = re.compile(rb"(?:(?:[!-9;-~]+[ \t]*:|[ \t])[^\n]*\n)*[^\n]*\Z")
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


def begins_mail(head: bytes) -> bool:
    """Whether these are the first fields of a mail: two at least that mails have, and nothing else before them."""
    return _FIELD.match(head) is not None and len(_MAIL_FIELDS.findall(head)) >= 2


def may_begin_mail(head: bytes) -> bool:
    """Whether there is nothing but fields in it, which may be those of a mail that has longer ones before."""
    return _FIELD.match(head) is not None and _FIELDS_ALONE.match(head) is not None


class LateMailReader:
    """A mail, if its fields say so when all of them are there; what is none goes to `other`."""

    def __init__(self, other: Reader) -> None:
        self._held: bytes | None = b""
        self._reader = other

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        if self._held is not None:
            self._held += data
            if len(self._held) <= HEAD_LIMIT_BYTES and may_begin_mail(self._held):
                return
            data = self._decide()
        yield from self._reader.feed(data)

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
        if self._held is not None:
            yield from self._reader.feed(self._decide())
        yield from self._reader.close()

    def _decide(self) -> bytes:
        held, self._held = self._held or b"", None
        fields = re.split(rb"\r?\n\r?\n", held[: HEAD_LIMIT_BYTES + 1], maxsplit=1)[0]
        if begins_mail(fields):
            self._reader = MailReader()
        return held


class MailReader:
    """One mail. Holds the fields of a part, and a line."""

    def __init__(self) -> None:
        self._held = b""
        self._head: bytearray | None = bytearray()  # fields being read
        self._boundaries: list[bytes] = []
        self._decode: Callable[[bytes], bytes] | None = None  # for the part that is read; None: it is passed over
        self._quantum = b""  # base64 that is no whole group yet
        self._line_goes_on = False
        self._number = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        yield from self._lines(self._held + data)

    def close(self) -> Iterator[Event]:
        """The last line, which need have no end, and whether parts are missing."""
        rest, self._held = self._held, b""
        if rest:
            yield from self._line(rest)
        yield from self._end_part()
        if self._boundaries:
            yield Unreadable("cut off: its last part has no end")

    def _lines(self, data: bytes) -> Iterator[Event]:
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            yield from self._line(data[at : end + 1])
            at = end + 1
        while len(data) - at > LINE_LIMIT_BYTES:
            yield from self._line(data[at : at + LINE_LIMIT_BYTES])
            at += LINE_LIMIT_BYTES
        self._held = data[at:]

    def _line(self, line: bytes) -> Iterator[Event]:
        begins, self._line_goes_on = not self._line_goes_on, not line.endswith(b"\n")
        if begins and line.startswith(b"--") and (found := self._boundary(line)) is not None:
            yield from self._end_part()
            del self._boundaries[found + 1 :]
            if line[2 + len(self._boundaries[found]) :].startswith(b"--"):
                self._boundaries.pop()
                self._head = None
            else:
                self._head = bytearray()
        elif self._head is not None:
            yield from self._field(line)
        elif self._decode is not None and (decoded := self._decode(line)):
            yield decoded

    def _boundary(self, line: bytes) -> int | None:
        """Which of the open ones this line is."""
        text = line[2:].rstrip(b" \t\r\n")
        for at in reversed(range(len(self._boundaries))):
            if text in (self._boundaries[at], self._boundaries[at] + b"--"):
                return at
        return None

    def _field(self, line: bytes) -> Iterator[Event]:
        assert self._head is not None
        if line.strip(b"\r\n"):
            self._head += line
            if len(self._head) > HEAD_LIMIT_BYTES:
                self._head = None
                yield Unreadable(f"more than {HEAD_LIMIT_BYTES} bytes of header fields")
            return
        head, self._head = bytes(self._head), None
        yield from self._begin_part(head)

    def _begin_part(self, head: bytes) -> Iterator[Event]:
        fields = BytesHeaderParser().parsebytes(head)
        if any(str(fields.get(name, "")).count(";") > PARAMETERS_LIMIT for name in _WITH_PARAMETERS):
            yield from self._undecoded(f"more than {PARAMETERS_LIMIT} parameters of a header field")
            return
        boundary = _text(fields.get_boundary)
        if fields.get_content_maintype() == "multipart" and boundary:
            if len(self._boundaries) < BOUNDARIES_LIMIT:
                self._boundaries.append(boundary.encode("latin-1", "replace"))
            else:
                yield Unreadable(f"multipart in multipart, more than {BOUNDARIES_LIMIT} times")
            return
        self._number += 1
        self._quantum = b""
        encoding = _COMMENT.sub(" ", str(fields.get("content-transfer-encoding", ""))).strip('"; \t\r\n').lower()
        self._decode = self._decoding(encoding)
        name = _text(fields.get_filename) or f"part {self._number}"
        yield Entry(name, content_type=fields.get_content_type())
        if encoding not in ENCODINGS:
            yield Unreadable("its transfer encoding is not known here")

    def _undecoded(self, why: str) -> Iterator[Event]:
        """A part that is shown as it is, and not read beyond that."""
        self._number += 1
        self._decode = bytes
        yield Entry(f"part {self._number}")
        yield Unreadable(why)

    def _decoding(self, encoding: str) -> Callable[[bytes], bytes]:
        if encoding == "base64":
            return self._base64
        return binascii.a2b_qp if encoding == "quoted-printable" else bytes

    def _base64(self, line: bytes) -> bytes:
        """As mail programs do: what is no base64 is passed over, and what follows padding is read on."""
        self._quantum += _NO_BASE64.sub(b"", line)
        whole = len(self._quantum) // 4 * 4
        data, self._quantum = self._quantum[:whole], self._quantum[whole:]
        if b"=" in line and self._quantum:
            data, self._quantum = data + self._quantum + b"=" * (-len(self._quantum) % 4), b""
        try:
            return binascii.a2b_base64(data)
        except binascii.Error:
            return b""

    def _end_part(self) -> Iterator[Event]:
        if self._decode is None:
            return
        if self._quantum:
            yield self._base64(b"=")
        self._decode = None
        yield Mark.ENDED


def _text(ask: Callable[[], str | None]) -> str:
    """The library raises for some fields that are broken."""
    try:
        return str(ask() or "")
    except (ValueError, LookupError, TypeError, AttributeError, IndexError):
        return ""
