"""ZIP archives (APPNOTE 6.3), read from their beginning as they go by.

    (local header, content, descriptor?)*, directory, end ──► entries as the local headers have them
                                               └► each of its entries must be one that was read, at its place

Programs that unpack go by the directory; so where that says anything else than what was read, something may be hidden,
and the archive is not wholly looked at. That holds for overlapping entries, too, which bombs are made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mitmsec.core.model import Value
from mitmsec_addons.containers import Entry, Event, Mark, Unreadable
from mitmsec_addons.inflating import Damaged, Deflated, Stored, Unfolding, Zstandard, bzipped, xzipped

ENTRIES_LIMIT = 20_000
METHODS: dict[int, Callable[[], Unfolding]] = {0: Stored, 8: Deflated, 12: bzipped, 93: Zstandard, 95: xzipped}
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06)")
_LOCAL, _CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 8, 0x800
_LONG = 0xFFFFFFFF  # the value stands in the ZIP64 field

type Step = Iterator[Event]

_OFFICE_BEGINS = (
    b"[Content_Types].xml", b"_rels/", b"docProps/", b"word/", b"xl/", b"ppt/", b"customXml/",
    b"mimetypeapplication/vnd.oasis.opendocument", b"mimetypeapplication/epub",
)  # fmt: skip


def begins_office_file(head: bytes) -> bool:
    """Whether the first entry of an archive (its local header and what follows) is one of an Office document's."""
    name_bytes, extra_bytes = _number(head, 26, 2), _number(head, 28, 2)
    name, content = head[30 : 30 + name_bytes], head[30 + name_bytes + extra_bytes :]
    return (name + content if name == b"mimetype" else name).startswith(_OFFICE_BEGINS)


class _Where(Value, frozen=True):
    """What an entry is, by its own header or by the directory's."""

    name: bytes
    method: int
    packed_bytes: int


class ZipReader:
    """One archive. Holds a header, the windows of one decompressor, and where each entry was."""

    def __init__(self) -> None:
        self._held = b""
        self._offset = 0  # of the first byte held
        self._state: Callable[[], Iterator[Event]] = self._between
        self._needs_more = False
        self._unfolding: Unfolding = Stored()
        self._left_bytes: int | None = None  # of the entry's content; None: it says so itself
        self._begin = self._header_at = 0  # of the entry's content, and of what says so
        self._read: dict[int, _Where] = {}  # by the place of its header
        self._directory: list[tuple[int, _Where]] = []
        self._directory_at: int | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        self._held += data
        self._needs_more = False
        while not self._needs_more:
            yield from self._state()

    def close(self) -> Iterator[Event]:
        """An archive that has no end is one that was cut off."""
        if not self._ended:
            yield Unreadable("the archive is cut off")

    # -- states: each takes what it can, and says where to go on, or that it needs more --------------------------------
    def _between(self) -> Step:
        yield from ()
        found = _SIGNATURE.search(self._held)
        if found is None:
            self._drop(max(len(self._held) - 3, 0))
            self._needs_more = True
            return
        self._drop(found.start())
        states = {_LOCAL: self._local, _CENTRAL: self._central}
        self._state = states.get(self._held[:4], self._end)

    def _local(self) -> Step:
        if (header := self._header(30, 26, 2)) is None:
            return
        flags, method = _number(header, 6, 2), _number(header, 8, 2)
        name = header[30 : 30 + _number(header, 26, 2)]
        sizes = [_number(header, 22, 4), _number(header, 18, 4)]
        packed_bytes = _zip64(header[30 + len(name) :], sizes)[1]
        self._ended = False
        self._begin, self._header_at = self._offset, self._offset - len(header)
        self._left_bytes = None if flags & _DESCRIPTOR and not packed_bytes else packed_bytes
        self._note(_Where(name, method, packed_bytes))
        self._state = self._skip
        if name.endswith(b"/"):
            return
        yield Entry(name.decode("utf-8" if flags & _UTF8 else "cp437", "replace"))
        if flags & _ENCRYPTED:
            yield Unreadable("encrypted")
        elif method not in METHODS:
            yield Unreadable(f"packed by method {method}, which is not known here")
        elif method == 0 and self._left_bytes is None:
            yield Unreadable("stored without a length")
        else:
            self._unfolding = METHODS[method]()
            self._state = self._unpack

    def _unpack(self) -> Step:
        data = self._held if self._left_bytes is None else self._held[: self._left_bytes]
        self._needs_more = not data and self._left_bytes != 0
        if self._needs_more:
            return
        try:
            if not self._unfolding.ended:
                yield from self._unfolding.feed(data)
        except Damaged as error:
            yield Unreadable(str(error))
            self._state = self._skip
            return
        if self._left_bytes is None:
            self._drop(len(data) - len(self._unfolding.unused))
            is_over = self._unfolding.ended
        else:
            self._drop(len(data))
            self._left_bytes -= len(data)
            is_over = self._left_bytes == 0
        if is_over:
            if (where := self._read.get(self._header_at)) is not None:
                self._note(_Where(where.name, where.method, self._offset - self._begin))
            if not self._unfolding.ended and not isinstance(self._unfolding, Stored):
                yield Unreadable("damaged")
            yield Mark.ENDED
            self._state = self._between

    def _skip(self) -> Step:
        """What cannot be unpacked: its length, or until something that looks like a header."""
        if self._left_bytes:
            skipped = min(self._left_bytes, len(self._held))
            self._drop(skipped)
            self._left_bytes -= skipped
            self._needs_more = self._left_bytes > 0
            if self._needs_more:
                return
        yield Mark.ENDED
        self._state = self._between

    def _central(self) -> Step:
        if self._directory_at is None:
            self._directory_at = self._offset
        if (header := self._header(46, 28, 3)) is None:
            return
        yield from ()
        name = header[46 : 46 + _number(header, 28, 2)]
        sizes = [_number(header, 24, 4), _number(header, 20, 4), _number(header, 42, 4)]
        _, packed_bytes, at = _zip64(header[46 + len(name) :], sizes)
        if len(self._directory) <= ENTRIES_LIMIT:
            self._directory.append((at, _Where(name, _number(header, 10, 2), packed_bytes)))
        self._state = self._between

    def _end(self) -> Step:
        if len(self._held) < 22:
            self._needs_more = True
            return
        told = _number(self._held, 16, 4)
        shift = 0 if told == _LONG or self._directory_at is None else self._directory_at - told
        if any(self._read.get(at + shift) != where for at, where in self._directory):
            yield Unreadable("the archive's directory names entries other than those it has")
        self._directory, self._directory_at, self._ended = [], None, True
        self._drop(22)
        self._state = self._between

    def _note(self, where: _Where) -> None:
        if len(self._read) < ENTRIES_LIMIT or self._header_at in self._read:
            self._read[self._header_at] = where

    # -- what is held --------------------------------------------------------------------------------------------------
    def _header(self, fixed_bytes: int, lengths_at: int, lengths: int) -> bytes | None:
        """A header with the fields of variable length behind it, taken; None: it is not all there."""
        if len(self._held) >= fixed_bytes:
            whole = fixed_bytes + sum(_number(self._held, lengths_at + 2 * one, 2) for one in range(lengths))
            if len(self._held) >= whole:
                header = self._held[:whole]
                self._drop(whole)
                return header
        self._needs_more = True
        return None

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._offset += count


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """`values`, those that are _LONG replaced by what the ZIP64 field (APPNOTE 4.5.3) has for them, in order."""
    while len(extra) >= 4:
        kind, size = _number(extra, 0, 2), _number(extra, 2, 2)
        if kind == 1:
            field = extra[4 : 4 + size]
            for place, value in enumerate(values):
                if value == _LONG:
                    values[place], field = _number(field, 0, 8), field[8:]
        extra = extra[4 + size :]
    return values
