"""ZIP archives (APPNOTE 6.3), read from their beginning as they go by.

    (local header, content, descriptor?)*, directory, end ──► entries as the local headers have them
                                               └► exactly the entries that were read, each at its place, and it itself
                                                  where the end says

Programs that unpack go by the end and the directory, and each looks for them in its own way; so where those say
anything else than what was read, something may be hidden, and the archive is not wholly looked at. That holds for
overlapping entries, too, which bombs are made of.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

from mitmsec.core.model import Value
from mitmsec_addons.containers import Entry, Event, Mark, Passed, Unreadable
from mitmsec_addons.inflating import Damaged, Deflated, Stored, Unfolding, Zstandard, bzipped, xzipped

ENTRIES_LIMIT = 20_000
METHODS: dict[int, Callable[[], Unfolding]] = {0: Stored, 8: Deflated, 12: bzipped, 93: Zstandard, 95: xzipped}
_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06|\x06\x06|\x06\x07)")
_LOCAL, _CENTRAL, _END64, _LOCATOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 1, 8, 0x800
_LONG = 0xFFFFFFFF  # the value stands in the ZIP64 field
_FIELD = struct.Struct("<HH")
_LINE_ENDS = (b"", b"\n", b"\r\n")  # of a mail's boundary, behind a part
_ALL_ONES = (0xFFFF, _LONG, _LONG)  # likewise, of an end

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


class _Directory:
    """What the directory of one archive says, and its end (APPNOTE 4.3.12 to 4.3.16)."""

    def __init__(self) -> None:
        self.entries: dict[int, _Where] = {}
        self.begin: int | None = None
        self._count = self._size_bytes = 0
        self._end64: tuple[int, int, int] | None = None
        self._end64_at = 0

    def header(self, begin: int, size_bytes: int, at: int, where: _Where) -> None:
        """One of its headers, which stands at `begin`, for the entry at `at`."""
        self.begin = begin if self.begin is None else self.begin
        self._count += 1
        self._size_bytes += size_bytes
        if self._count <= ENTRIES_LIMIT:
            self.entries[at] = where

    def end64(self, begin: int, record: bytes) -> None:
        """The ZIP64 record, which stands at `begin`."""
        self._end64, self._end64_at = (_number(record, 32, 8), _number(record, 40, 8), _number(record, 48, 8)), begin

    def is_of(self, read: dict[int, _Where], begin: int, end: bytes, has_inner: bool) -> bool:
        """Whether `end`, which stands at `begin`, leads to this directory, and this to what was `read`, no more."""
        told = (_number(end, 10, 2), _number(end, 12, 4), _number(end, 16, 4))
        if self._end64 is not None:
            if any(
                short not in (all_ones, long)
                for short, all_ones, long in zip(told, _ALL_ONES, self._end64, strict=True)
            ):
                return False
            told, begin = self._end64, self._end64_at
        mine = begin if self.begin is None else self.begin
        shift = mine - told[2]
        return (
            self._count == len(self.entries)  # none twice, and not too many
            and (self._count, self._size_bytes, begin) == (*told[:2], mine + self._size_bytes)
            and {at + shift: where for at, where in self.entries.items()} == read
            and (shift == 0 or not has_inner)  # some programs would take what lies in an entry for the directory
        )


class ZipReader:
    """One archive. Holds a header, the windows of one decompressor, and where each entry was.

    Entries that `wants` says no to are passed over. `at` bytes stood before what is fed.
    """

    def __init__(self, wants: Callable[[str], bool] = lambda name: True, at: int = 0) -> None:
        self._wants = wants
        self._held = b""
        self._at = 0  # in what is held: of the first byte that is not taken
        self._offset = at  # of that byte, in all
        self._state: Callable[[], Iterator[Event]] = self._between
        self._needs_more = False
        self._unfolding: Unfolding = Stored()
        self._is_behind = False  # something stands behind what it has unfolded
        self._left_bytes: int | None = None  # of the entry's content; None: it says so itself
        self._begin = self._header_at = 0  # of the entry's content, and of what says so
        self._read: dict[int, _Where] = {}  # by the place of its header
        self._directory = _Directory()
        self._inner = b""  # the last bytes of packed content
        self._has_inner = False  # in that lies what looks like a directory
        self._entry: Entry | None = None  # a folder's, while it has no content
        self._is_shown = False
        self._over_at: int | None = None  # where the comment of the end that was last is over

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        self._held, self._at = self._held[self._at :] + data, 0
        self._needs_more = False
        while not self._needs_more:
            yield from self._state()

    def close(self) -> Iterator[Event]:
        """An archive that has no end is one that was cut off."""
        if self._over_at is None:
            yield Unreadable("the archive is cut off")
            return
        behind = self._offset + len(self._held) - self._at - self._over_at
        is_line_end = 0 <= behind < len(_LINE_ENDS) and self._held.endswith(_LINE_ENDS[behind])
        if not is_line_end:
            yield Unreadable("the archive's end is not where it says")

    # -- states: each takes what it can, and says where to go on, or that it needs more --------------------------------
    def _between(self) -> Step:
        yield b""
        found = _SIGNATURE.search(self._held, self._at)
        if found is None:
            self._drop(max(len(self._held) - self._at - 3, 0))
            self._needs_more = True
            return
        self._drop(found.start() - self._at)
        states = {_LOCAL: self._local, _CENTRAL: self._central, _END64: self._end64, _LOCATOR: self._locator}
        self._state = states.get(found[0], self._end)

    def _local(self) -> Step:
        if (header := self._header(30, 26, 2)) is None:
            return
        flags, method = _number(header, 6, 2), _number(header, 8, 2)
        name = header[30 : 30 + _number(header, 26, 2)]
        sizes = [_number(header, 22, 4), _number(header, 18, 4)]
        packed_bytes = _zip64(header, 30 + len(name), sizes)[1]
        self._over_at = None
        self._begin, self._header_at = self._offset, self._offset - len(header)
        self._left_bytes = None if flags & _DESCRIPTOR and not packed_bytes else packed_bytes
        self._note(_Where(name, method, packed_bytes))
        self._state = self._skip
        self._is_shown = False
        if name.endswith(b"/") and self._left_bytes == 0:
            return
        text = name.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        self._is_shown = self._wants(text)
        self._entry = Entry(text)
        if self._is_shown and not name.endswith(b"/"):
            yield from self._begun()
        elif not self._is_shown and self._left_bytes is not None:
            return
        yield from self._method(flags, method)

    def _method(self, flags: int, method: int) -> Step:
        if flags & _ENCRYPTED:
            yield from self._unread("encrypted")
        elif method not in METHODS:
            yield from self._unread(f"packed by method {method}, which is not known here")
        elif method == 0 and self._left_bytes is None:
            yield from self._unread("stored without a length")
        else:
            self._unfolding, self._is_behind = METHODS[method](), False
            self._state = self._unpack

    def _unread(self, why: str) -> Step:
        """Of an entry that is not shown, nothing is told."""
        if self._is_shown:
            yield from self._begun()
            yield Unreadable(why)

    def _begun(self) -> Step:
        entry, self._entry = self._entry, None
        if entry is not None:
            yield entry

    def _unpack(self) -> Step:
        end = len(self._held) if self._left_bytes is None else self._at + self._left_bytes
        data = self._held[self._at : end]
        self._needs_more = not data and self._left_bytes != 0
        if self._needs_more:
            return
        try:
            was_ended = self._unfolding.ended
            for piece in () if was_ended else self._unfolding.feed(data):
                yield from self._begun() if self._is_shown else ()
                yield piece if self._is_shown else Passed(len(piece))
            if self._left_bytes is not None and (was_ended or self._unfolding.unused) and not self._is_behind:
                self._is_behind = bool(data)
                yield from self._unread("something stands behind what it is packed to") if data else ()
        except Damaged as error:
            yield from self._unread(str(error))
            self._state = self._skip
            return
        if self._left_bytes is None:
            self._pass(len(data) - len(self._unfolding.unused))
            is_over = self._unfolding.ended
        else:
            self._pass(len(data))
            self._left_bytes -= len(data)
            is_over = self._left_bytes == 0
        if is_over:
            if (where := self._read.get(self._header_at)) is not None:
                self._note(_Where(where.name, where.method, self._offset - self._begin))
            if not self._unfolding.ended and not isinstance(self._unfolding, Stored):
                yield from self._unread("damaged")
            yield Mark.ENDED
            self._state = self._between

    def _skip(self) -> Step:
        """What cannot be unpacked: its length, or until something that looks like a header."""
        if self._left_bytes:
            skipped = min(self._left_bytes, len(self._held) - self._at)
            self._pass(skipped)
            self._left_bytes -= skipped
            self._needs_more = self._left_bytes > 0
            if self._needs_more:
                return
        yield Mark.ENDED
        self._state = self._between

    def _central(self) -> Step:
        begin = self._offset
        if (header := self._header(46, 28, 3)) is None:
            return
        yield b""
        name = header[46 : 46 + _number(header, 28, 2)]
        sizes = [_number(header, 24, 4), _number(header, 20, 4), _number(header, 42, 4)]
        _, packed_bytes, at = _zip64(header, 46 + len(name), sizes)
        self._directory.header(begin, len(header), at, _Where(name, _number(header, 10, 2), packed_bytes))
        self._state = self._between

    def _end64(self) -> Step:
        begin = self._offset
        if (record := self._take(_END64_BYTES)) is None:
            return
        yield from ()
        self._directory.end64(begin, record)
        self._state = self._between

    def _locator(self) -> Step:
        yield from ()
        if self._take(_LOCATOR_BYTES) is not None:
            self._state = self._between

    def _end(self) -> Step:
        begin = self._offset
        if (end := self._take(_END_BYTES)) is None:
            return
        if not self._directory.is_of(self._read, begin, end, self._has_inner):
            yield Unreadable("the archive's directory names entries other than those it has")
        self._directory, self._read, self._has_inner = _Directory(), {}, False
        self._over_at = self._offset + _number(end, 20, 2)
        self._state = self._between

    def _note(self, where: _Where) -> None:
        if len(self._read) < ENTRIES_LIMIT + 1 or self._header_at in self._read:
            self._read[self._header_at] = where

    # -- what is held --------------------------------------------------------------------------------------------------
    def _header(self, fixed_bytes: int, lengths_at: int, lengths: int) -> bytes | None:
        """A header with the fields of variable length behind it, taken; None: it is not all there."""
        if len(self._held) - self._at >= fixed_bytes:
            at = self._at + lengths_at
            return self._take(fixed_bytes + sum(_number(self._held, at + 2 * one, 2) for one in range(lengths)))
        self._needs_more = True
        return None

    def _take(self, count: int) -> bytes | None:
        """So many bytes, taken; None: they are not all there."""
        if len(self._held) - self._at < count:
            self._needs_more = True
            return None
        self._drop(count)
        return self._held[self._at - count : self._at]

    def _pass(self, count: int) -> None:
        """So much of packed content."""
        content = self._inner + self._held[self._at : self._at + count]
        self._has_inner = self._has_inner or _CENTRAL in content
        self._inner = content[-3:]
        self._drop(count)

    def _drop(self, count: int) -> None:
        self._at += count
        self._offset += count


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _zip64(header: bytes, at: int, values: list[int]) -> list[int]:
    """`values`, those that are _LONG replaced by what the ZIP64 field (APPNOTE 4.5.3) at `at` has, in order."""
    while at + 4 <= len(header):
        kind, size = _FIELD.unpack_from(header, at)
        at += 4
        if kind == 1:
            field = header[at : at + size]
            for place, value in enumerate(values):
                if value == _LONG:
                    values[place], field = _number(field, 0, 8), field[8:]
            break
        at += size
    return values
