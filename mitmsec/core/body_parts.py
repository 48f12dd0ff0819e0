"""Bodies that are several contents one after the other, told apart in a stream: multipart (RFC 2046 §5.1) and gRPC.

    body ── pieces of any size ──► Multipart | GrpcMessages ──► Opened, bytes*, Opened, bytes* …

Nothing is left out but delimiters: what stands before or behind the parts, and what breaks the form, comes as bytes as
well, before the first Opened, in the part that was opened last, or as EPILOGUE. At most HEAD_LIMIT_BYTES are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Protocol

from mitmsec.core.model import Value

HEAD_LIMIT_BYTES = 8 << 10
NAME_LIMIT_CHARACTERS = 128
EPILOGUE = "epilogue"
REST = "further messages"
PARTS_LIMIT = 1000  # in one body; the rest of a longer one is read as it comes
_GRPC_HEAD_BYTES = 5
_COMPRESSED = 0x01

_BOUNDARY = re.compile(r'(?i)\s*multipart/[^;]+;(?:[^"]|"[^"]*")*?\bboundary=(?:"([^"]{1,200})"|([^\s;,"]{1,200}))')
_FILENAME = re.compile(rb'(?i)[;\s]filename\*?="?(?:utf-8\'[^\']*\')?((?:[^"\\\r\n;]|\\.)*)')
_FIELD = re.compile(rb'(?i)[;\s]name="?((?:[^"\\\r\n;]|\\.)*)')
_TYPE = re.compile(rb"(?im)^content-type:[ \t]*([^\r\n]*)")


class Opened(Value, frozen=True):
    """The next content begins, `at` bytes into the body. `codings` are its own; `head` is what was said about it."""

    name: str
    at: int
    head: bytes = b""
    content_type: str = ""
    codings: str = ""
    file_name: str = ""
    """What it calls itself, whole; `name` is for people."""
    is_aside: bool = False
    """It is no part: it stands around parts, and few programs show it."""


class Unreadable(Value, frozen=True):
    """Something of the current content, or of the whole where there is none, cannot be looked at."""

    why: str


class Mark(Enum):
    """What is told without anything more to say. `ENDED`: of the current content."""

    ENDED = "ended"


type Event = Opened | bytes | Unreadable | Mark


class Splitter(Protocol):
    """Tells the contents of one body apart."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """What `data` makes certain."""

    def close(self) -> Iterator[Event]:
        """What was kept: the body is complete."""


def splitter(content_type: str, message_coding: str = "") -> Splitter | None:
    """For a body of this Content-Type, where it has parts. `message_coding`: what the field `grpc-encoding` says."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in ("application/grpc", "application/grpc-web") or media_type.startswith(
        ("application/grpc+", "application/grpc-web+")
    ):
        return GrpcMessages(message_coding)
    found = _BOUNDARY.match(content_type)
    return Multipart((found[1] or found[2]).encode("latin-1", "replace")) if found else None


class Multipart:
    """`boundary` as the Content-Type says it, without the hyphens in front."""

    __slots__ = ("_at", "_buffer", "_count", "_delimiter", "_is_over", "_is_raw")

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # which the first one may lack
        self._at = -len(self._buffer)  # of the buffer's first byte in the body
        self._count = 0
        self._is_raw = False  # no more parts
        self._is_over = False  # the last one was said to be the last, and nothing but line breaks followed

    def feed(self, data: bytes) -> Iterator[Opened | bytes]:
        self._buffer += data
        begin = 0  # where to look: before it is content that only looked like a delimiter
        while not self._is_raw:
            found = self._buffer.find(self._delimiter, begin)
            if found < 0:
                yield from self._take(max(begin, len(self._buffer) - len(self._delimiter) + 1))
                return
            if (is_one := self._is_delimiter(found)) is None:
                yield from self._take(found)
                return
            if is_one or self._is_over:
                yield from self._take(found)
                begin = 0
                if is_one:
                    yield self._opened()
                else:
                    self._skip_last()
            else:  # what only begins like it is content
                begin = found + len(self._delimiter)
        if self._is_over:
            yield from self._epilogue()
        yield from self._take(len(self._buffer))

    def _epilogue(self) -> Iterator[Opened]:
        """What follows the last part, after line breaks: nobody is to read it, so it is a content of its own."""
        begin = len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))
        self._buffer, self._at = self._buffer[begin:], self._at + begin
        if self._buffer:
            self._is_over = False
            yield Opened(name=EPILOGUE, at=self._at)

    def close(self) -> Iterator[Opened | bytes]:
        yield from self._take(len(self._buffer))

    def _is_delimiter(self, at: int) -> bool | None:
        """A part, with its whole head, begins there in the buffer. None: more must come for it to be seen."""
        begin = at + len(self._delimiter)
        line = self._buffer.find(b"\r\n", begin)
        rest = self._buffer[begin : line if line >= 0 else None].strip(b" \t")
        self._is_over = rest.startswith(b"--")
        self._is_raw = self._is_over or self._count >= PARTS_LIMIT
        if self._is_raw or (rest if line >= 0 else rest.rstrip(b"\r").strip(b" \t") not in (b"", b"-")):
            return False
        if line >= 0 and self._buffer.find(b"\r\n\r\n", line) >= 0:
            return True
        self._is_raw = len(self._buffer) - at > HEAD_LIMIT_BYTES
        return False if self._is_raw else None

    def _skip_last(self) -> None:
        end = self._buffer.index(b"--", len(self._delimiter)) + 2
        self._buffer, self._at = self._buffer[end:], self._at + end

    def _opened(self) -> Opened:
        line = self._buffer.find(b"\r\n", len(self._delimiter))
        end = self._buffer.find(b"\r\n\r\n", line)
        head = self._buffer[line + 2 : end + 2]
        self._buffer, self._at = self._buffer[end + 4 :], self._at + end + 4
        self._count += 1
        return Opened(name=_name(head, self._count), at=self._at, head=head, content_type=_type(head))

    def _take(self, size_bytes: int) -> Iterator[bytes]:
        if size_bytes > 0:
            data, self._buffer = self._buffer[:size_bytes], self._buffer[size_bytes:]
            data = data[max(0, -self._at) :]
            self._at += size_bytes
            if data:
                yield data


class GrpcMessages:
    """Length-prefixed messages (gRPC over HTTP/2, *Length-Prefixed-Message*)."""

    __slots__ = ("_at", "_coding", "_count", "_head", "_is_rest", "_left_bytes")

    def __init__(self, coding: str) -> None:
        self._coding = "" if coding.strip().lower() == "identity" else coding
        self._head = b""
        self._at = self._count = self._left_bytes = 0
        self._is_rest = False  # beyond the limit: all but compressed messages are one content, heads and all

    def feed(self, data: bytes) -> Iterator[Opened | bytes]:
        at = 0
        while at < len(data):
            if self._is_rest and not self._coding:
                yield data[at:]
                return
            if not self._left_bytes:
                wanted = _GRPC_HEAD_BYTES - len(self._head)
                self._head, at = self._head + data[at : at + wanted], at + wanted
                if len(self._head) < _GRPC_HEAD_BYTES:
                    return
                yield from self._begun()
            taken = data[at : at + self._left_bytes]
            at += len(taken)
            self._left_bytes -= len(taken)
            self._at += len(taken)
            if taken:
                yield taken

    def close(self) -> Iterator[Opened | bytes]:
        if self._head:
            yield self._head

    def _begun(self) -> Iterator[Opened | bytes]:
        head, self._head = self._head, b""
        self._left_bytes = int.from_bytes(head[1:])
        coding = self._coding if head[0] & _COMPRESSED else ""
        if coding or self._count < PARTS_LIMIT:
            self._at += _GRPC_HEAD_BYTES
            self._count += 1
            self._is_rest = False
            yield Opened(name=f"message {self._count}", at=self._at, codings=coding)
            return
        if not self._is_rest:
            self._is_rest = True
            yield Opened(name=REST, at=self._at)
        self._at += _GRPC_HEAD_BYTES
        yield head


def _name(head: bytes, number: int) -> str:
    """The file's, else the field's; as a person may read it."""
    found = _FILENAME.search(head) or _FIELD.search(head)
    text = found[1].decode("utf-8", "replace") if found else ""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:NAME_LIMIT_CHARACTERS])
    return shown or f"part {number}"


def _type(head: bytes) -> str:
    found = _TYPE.search(head)
    return found[1].decode("latin-1").strip() if found else ""
