"""tar archives (POSIX.1-2024 pax, ustar; GNU's long names) as they go by."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mitmsec_addons.containers import Entry, Event, Mark, Unreadable

BLOCK_BYTES = 512
NAME_LIMIT_BYTES = 1 << 16  # of what says a long name
_FILE = (b"0", b"\0", b"7")
_NOTHING_INSIDE = (b"1", b"2", b"3", b"4", b"5", b"6", b"g", b"K")
_GNU_NAME, _PAX, _PAX_ALL = b"L", b"x", b"g"
_SIZE = re.compile(rb"[0-9]{1,18}")
_LENGTH = re.compile(rb"([0-9]{1,6}) ")


def begins_tar(head: bytes) -> bool:
    """Whether the first block has its own checksum: archives of before POSIX have nothing else to know them by."""
    told = _octal(head[148:156]) if len(head) >= BLOCK_BYTES else None
    return bool(told) and any(head[:100]) and _sum(head[:BLOCK_BYTES]) == told


class TarReader:
    """One archive. Holds a block, and a long name."""

    def __init__(self) -> None:
        self._held = b""
        self._left_bytes = self._padding_bytes = 0
        self._kind = b""
        self._long: bytes | None = None  # what says the name of the next file, while it is read
        self._name = ""
        self._size_bytes: int | None = None  # of the next file, where a pax record says it
        self._over = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        self._held += data
        while self._held and not self._over:
            if self._left_bytes:
                yield from self._content()
            elif self._padding_bytes:
                dropped = min(self._padding_bytes, len(self._held))
                self._held, self._padding_bytes = self._held[dropped:], self._padding_bytes - dropped
            elif len(self._held) < BLOCK_BYTES:
                return
            else:
                block, self._held = self._held[:BLOCK_BYTES], self._held[BLOCK_BYTES:]
                if any(block):
                    yield from self._header(block)
                # Blocks of zeros end it for many programs; what is behind them is read by others (`tar -i`).

    def close(self) -> Iterator[Event]:
        """A file that is not all there."""
        if (self._left_bytes or self._held) and not self._over:
            yield Unreadable("the archive is cut off")

    def _header(self, block: bytes) -> Iterator[Event]:
        size_bytes = _size(block[124:136])
        if size_bytes is None or _sum(block) != _octal(block[148:156]):
            self._over = True
            yield Unreadable("damaged: a header is none")
            return
        self._kind = block[156:157]
        if self._size_bytes is not None and self._kind in _FILE:
            size_bytes, self._size_bytes = self._size_bytes, None
        self._left_bytes = size_bytes if self._kind not in _NOTHING_INSIDE or self._kind in b"gK" else 0
        self._padding_bytes = -self._left_bytes % BLOCK_BYTES
        yield b""
        if self._kind in (_GNU_NAME, _PAX, _PAX_ALL):
            self._long = b"" if self._left_bytes else None
            if size_bytes > NAME_LIMIT_BYTES:
                yield Unreadable(f"more than {NAME_LIMIT_BYTES} bytes of what is said of a file")
            return
        name = self._name or _named(block)
        self._name = ""
        if self._kind in _NOTHING_INSIDE:
            return
        yield Entry(name)
        if self._kind not in _FILE:
            yield Unreadable(f"an entry of the kind {self._kind!r}, which is not known here")
        if not self._left_bytes:
            yield Mark.ENDED

    def _content(self) -> Iterator[Event]:
        data, self._held = self._held[: self._left_bytes], self._held[self._left_bytes :]
        self._left_bytes -= len(data)
        if self._long is not None:
            self._long += data[: NAME_LIMIT_BYTES - len(self._long)]
            if not self._left_bytes:
                long, self._long = self._long, None
                yield from self._said(long)
        elif self._kind not in _NOTHING_INSIDE:
            yield data
            if not self._left_bytes:
                yield Mark.ENDED

    def _said(self, long: bytes) -> Iterator[Event]:
        if self._kind == _GNU_NAME:
            self._name = _text(long) or self._name
            return
        said = _pax(long)
        size = said.get(b"size", b"")
        if size and (self._kind == _PAX_ALL or not _SIZE.fullmatch(size)):
            yield Unreadable("a size that is not its files' own")
        elif size:
            self._size_bytes = int(size)
        if self._kind == _PAX:
            self._name = _text(said.get(b"path", b""))


def _named(block: bytes) -> str:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def _pax(records: bytes) -> dict[bytes, bytes]:
    """`30 path=…\\n`, one record behind the other, up to one that is none."""
    found: dict[bytes, bytes] = {}
    at = 0
    while (length := _LENGTH.match(records, at)) is not None:
        end = at + int(length[1])
        if end <= length.end() or end > len(records):
            break
        key, _, value = records[length.end() : end].removesuffix(b"\n").partition(b"=")
        found[key] = value
        at = end
    return found


def _size(field: bytes) -> int | None:
    """Octal, or GNU's base 256. None: neither, or a negative one."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if all(byte in b"01234567" for byte in digits) else None


def _sum(block: bytes) -> int:
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:])
