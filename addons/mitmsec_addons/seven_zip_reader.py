"""7z archives (7zFormat.txt of the LZMA SDK): kept up to LIMIT_BYTES, as what says how to unpack them is at their end.

    signature, where the header is ── packed streams ── header (mostly packed itself)
                                          └► folders: LZMA, LZMA2, BCJ, Delta, deflate, bzip2, or as it is ──► files

`seven_zip_header` reads the header. What is encrypted, or packed otherwise (PPMd, BCJ2), is told.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec_addons.containers import Entry, Event, Mark, Unreadable
from mitmsec_addons.inflating import Damaged
from mitmsec_addons.seven_zip_header import Folder, Header, Malformed, header_of, unfolded

LIMIT_BYTES = 16 << 20
HEADER_LIMIT_BYTES = 4 << 20
START_BYTES = 32


class SevenZipReader:
    """One archive."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._whole_bytes: int | None = None
        self._is_over = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Nothing, until all of it is there."""
        if self._is_over:
            return
        self._held += data
        if self._whole_bytes is None and len(self._held) >= START_BYTES:
            self._whole_bytes = START_BYTES + _number(self._held, 12) + _number(self._held, 20)
        if max(len(self._held), self._whole_bytes or 0) > LIMIT_BYTES:
            yield from self._end(f"a 7z archive of more than {LIMIT_BYTES} bytes")
        elif self._whole_bytes is not None and len(self._held) >= self._whole_bytes:
            yield from self._unpacked(bytes(self._held))
            self._is_over = True

    def close(self) -> Iterator[Event]:
        """An archive that is not all there."""
        if not self._is_over:
            yield from self._end("the archive is cut off")

    def _end(self, why: str) -> Iterator[Event]:
        self._is_over = True
        self._held.clear()
        yield Unreadable(why)

    def _unpacked(self, archive: bytes) -> Iterator[Event]:
        begin = START_BYTES + _number(archive, 12)
        try:
            header = header_of(archive[begin : begin + _number(archive, 20)])
            if isinstance(header, Folder):
                packed = b"".join(_bounded(unfolded(header, archive[START_BYTES:]), HEADER_LIMIT_BYTES))
                header = header_of(packed)
            if isinstance(header, Folder):
                raise Malformed("its header is packed twice")
        except (Malformed, Damaged) as error:
            yield Unreadable(str(error))
            return
        yield from _files(header, archive[START_BYTES:])


def _files(header: Header, packed: bytes) -> Iterator[Event]:
    names = iter(header.names)
    for folder in header.folders:
        sizes = iter(folder.file_sizes)
        left = -1
        try:
            for piece in unfolded(folder, packed):
                while piece:
                    if left <= 0:
                        if (size := next(sizes, None)) is None:
                            break
                        left = max(size, 0)
                        yield Entry(next(names, ""))
                    yield piece[:left]
                    piece, left = piece[left:], left - len(piece[:left])
                    if not left:
                        yield Mark.ENDED
        except (Malformed, Damaged) as error:
            yield Unreadable(str(error))
        for _ in sizes:
            next(names, "")


def _bounded(pieces: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    for piece in pieces:
        limit_bytes -= len(piece)
        if limit_bytes < 0:
            raise Malformed("its header is too long")
        yield piece


def _number(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
