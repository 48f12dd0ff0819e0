"""What was compressed, unfolded in slices of at most SLICE_BYTES, in bounded memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

SLICE_BYTES = 1 << 16
ZSTD_WINDOW_BYTES = 8 << 20  # what RFC 8878 says every decoder should take
_ZSTD_STEP_BYTES = 128
XZ_MEMORY_BYTES = 32 << 20  # what its decoder may take; `xz -8` and `-9` ask for more


class Damaged(Exception):
    """It cannot be unfolded; the text says why, and holds none of it."""


class Unfolding(Protocol):
    """One compressed stream. Once `ended`, `unused` is what was fed beyond its end."""

    ended: bool
    unused: bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Slices. Nothing may be fed once it has ended. Raises Damaged."""


class Stored:
    """What is as it is. It ends where others say."""

    ended = False
    unused = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), SLICE_BYTES):
            yield data[at : at + SLICE_BYTES]


class Deflated:
    """Raw deflate (RFC 1951), or what `wbits` says (zlib's manual)."""

    def __init__(self, wbits: int = -zlib.MAX_WBITS) -> None:
        self._state = zlib.decompressobj(wbits)
        self.ended, self.unused = False, b""

    @property
    def goes_on(self) -> bool:
        """Its end has not come."""
        return not self.ended

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._state.decompress(data, SLICE_BYTES)
            except zlib.error:
                raise Damaged("damaged") from None
            if piece:
                yield piece
            if self._state.eof:
                self.ended, self.unused = True, self._state.unused_data
                return
            data = self._state.unconsumed_tail
            if not piece and not data:
                return


class _ByModule:
    """bz2's and lzma's interface."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.ended, self.unused = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._state.decompress(data, SLICE_BYTES)
            except lzma.LZMAError as error:
                much = "emory" in str(error)
                raise Damaged(f"needs more than {XZ_MEMORY_BYTES} bytes to unpack" if much else "damaged") from None
            except (OSError, ValueError):
                raise Damaged("damaged") from None
            data = b""
            if piece:
                yield piece
            if self._state.eof:
                self.ended, self.unused = True, self._state.unused_data
                return
            if self._state.needs_input:
                return


class Zstandard:
    """A frame of Zstandard (RFC 8878), with the library that mitmproxy brings.

    What it unfolds in one step has no limit of its own: a block of four bytes can stand for 128 KiB.
    """

    def __init__(self) -> None:
        import zstandard

        self._state: Any = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        self._error: type[Exception] = zstandard.ZstdError
        self.ended, self.unused = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _ZSTD_STEP_BYTES):
            try:
                piece = self._state.decompress(data[at : at + _ZSTD_STEP_BYTES])
            except self._error as error:
                much = "emory" in str(error)
                raise Damaged(f"needs more than {ZSTD_WINDOW_BYTES} bytes to unpack" if much else "damaged") from None
            yield from Stored().feed(piece)
            if self._state.eof:
                self.ended = True
                self.unused = self._state.unused_data + data[at + _ZSTD_STEP_BYTES :]
                return


def gzipped() -> Unfolding:
    """A member of gzip (RFC 1952)."""
    return Deflated(zlib.MAX_WBITS | 16)


def bzipped() -> Unfolding:
    """A stream of bzip2."""
    return _ByModule(bz2.BZ2Decompressor())


def xzipped() -> Unfolding:
    """A stream of xz or of lzma-alone."""
    return _ByModule(lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY_BYTES))


def begins_lzma(head: bytes) -> bool:
    """Whether it may be lzma-alone, which has no signature: what its own programs ask of it (lzma-file-format.txt)."""
    window_bytes, size = int.from_bytes(head[1:5], "little"), head[5:13]
    bits = f"{window_bytes:b}".rstrip("0")
    return (
        len(head) > 13
        and head[0] < 9 * 5 * 5
        and (bits in ("1", "11") or window_bytes == 0xFFFFFFFF)
        and (size == b"\xff" * 8 or 0 < int.from_bytes(size, "little") < 1 << 38)
        and head[13] == 0
    )


def begins_zlib(head: bytes) -> bool:
    """Whether it is a stream of zlib (RFC 1950), as far as it is there."""
    if len(head) < 2 or head[0] & 0x8F != 8 or int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, SLICE_BYTES))
    except zlib.error:
        return False


def zlibbed() -> Unfolding:
    """A stream of zlib."""
    return Deflated(zlib.MAX_WBITS)


def begins_skippable(head: bytes) -> bool:
    """Whether it is a frame that decoders of Zstandard pass over (RFC 8878, 3.1.2)."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
