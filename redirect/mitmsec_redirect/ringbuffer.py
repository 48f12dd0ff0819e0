"""A BPF ring buffer as records: what programs in the kernel write, read through memory that both share.

    page: how far we have read │ page: how far the kernel has written │ data │ the same data again

The data is mapped twice in a row, so a record that wraps is read in one piece. Each begins with its length, whose upper
bits say that it is still being written, or is to be skipped. Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading

HEADER = struct.Struct("=II")
BUSY, DISCARDED = 1 << 31, 1 << 30
LENGTH_MASK = DISCARDED - 1


class RingBuffer:
    """The reading end of a map of kind RINGBUF. Its descriptor is the map's; not thread-safe."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._size = size_bytes
        page = mmap.PAGESIZE
        self._mine = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._theirs = mmap.mmap(fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._page = page
        self._read_to = ctypes.c_uint64.from_buffer(self._mine)  # written as one word
        self._order = threading.Lock()

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._fd

    def drain(self, most: int | None = None) -> list[bytes]:
        """All records that were complete when this was called, or the first `most`, in the order of their beginning."""
        start = at = self._read_to.value
        written_to = int.from_bytes(self._theirs[:8], "little")
        if at == written_to:  # as whoever asks before each connection mostly finds it
            return []
        places: list[tuple[int, int]] = []
        while at < written_to and (most is None or len(places) < most):
            length, _ = HEADER.unpack_from(self._theirs, self._page + at % self._size)
            if length & BUSY:
                break
            if not length & DISCARDED:
                places.append((at - start + HEADER.size, length & LENGTH_MASK))
            at += (length & LENGTH_MASK) + HEADER.size + 7 & ~7
        if at == start:
            return []
        with self._order:  # what is read from here on was written before the headers above (on aarch64 too)
            begin = self._page + start % self._size
            data = self._theirs[begin : begin + at - start]
        self._read_to.value = at
        return [data[offset : offset + length] for offset, length in places]

    def close(self) -> None:
        """Unmap. The map's descriptor stays open."""
        del self._read_to
        self._mine.close()
        self._theirs.close()
