"""ZIP archives behind something else: a program that unpacks itself, a picture, a few bytes.

    what is anything ──► a local header that may be one ──► ZipReader, from there on
                     └► the end of an archive none of which was seen ──► Unreadable

Programs look for an archive's end at the end of a file, so whatever it begins with, it is an archive to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mitmsec_addons.containers import Event, Reader, Unreadable
from mitmsec_addons.zip_reader import ZipReader

_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x05\x06)")
_LOCAL = b"PK\x03\x04"
_HEADER_BYTES = 30
_VERSION = 63  # of APPNOTE 6.3.10: none is above
_METHOD, _NAME_BYTES = 99, 1024
_DIRECTORY_BYTES, _LONG = 46, b"\xff" * 4


class EmbeddedZipReader:
    """What is none of the archives that are known by their beginning. Holds less than a header.

    `begin` makes what reads an archive that so many bytes stand before. Nobody `tells` of an
    end where another inspector does.
    """

    def __init__(self, begin: Callable[[int], Reader] = lambda at: ZipReader(at=at), tells: bool = True) -> None:
        self._begin = begin
        self._held = b""
        self._offset = 0  # of the first byte held
        self._zip: Reader | None = None
        self._is_told = not tells

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`: nothing, mostly."""
        if self._zip is not None:
            yield from self._zip.feed(data)
        else:
            yield from self._search(self._held + data)

    def close(self) -> Iterator[Event]:
        """What comes of the end."""
        if self._zip is not None:
            yield from self._zip.close()
        elif _is_end(self._held, self._offset):
            yield from self._end()

    def _search(self, held: bytes) -> Iterator[Event]:
        keep = max(len(held) - 3, 0)
        for found in _SIGNATURE.finditer(held):
            header = held[found.start() : found.start() + _HEADER_BYTES]
            if len(header) < _HEADER_BYTES:
                keep = min(keep, found.start())
                break
            if found[0] == _LOCAL and _may_be_local(header):
                self._held, self._zip = b"", self._begin(self._offset + found.start())
                yield from self._zip.feed(held[found.start() :])
                return
            if _is_end(header, self._offset + found.start()):
                yield from self._end()
        self._held, self._offset = held[keep:], self._offset + keep

    def _end(self) -> Iterator[Event]:
        if not self._is_told:
            yield Unreadable("the end of a ZIP archive that was not found")
        self._is_told = True


def _may_be_local(header: bytes) -> bool:
    """Whether it is more than four bytes that happen to stand in a program."""
    version, method, name_bytes = header[4], header[8:10], header[26:28]
    return (
        version <= _VERSION
        and int.from_bytes(method, "little") <= _METHOD
        and 0 < int.from_bytes(name_bytes, "little") <= _NAME_BYTES
    )


def _is_end(header: bytes, at: int) -> bool:
    """Whether a program would find a directory by it."""
    size_bytes = header[12:16]
    directory_fits = _DIRECTORY_BYTES <= int.from_bytes(size_bytes, "little") <= at
    return len(header) >= 22 and not header.startswith(_LOCAL) and (directory_fits or size_bytes == _LONG)
