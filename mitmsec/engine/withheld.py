"""The end of a body that has not gone on yet: what may be masked still, and what its reader waits for.

      gone on                 │ withheld                        │ to come
    ──────────────────────────┼─────────────────────────────────┼────────
                              └ `mask` reaches from here on

Bytes are counted as they travel. Of a body whose length was told, the last byte is always withheld: with it the message
is complete, whatever follows.
"""

from __future__ import annotations

from mitmsec.core.model import Delivery

HOLD_BYTES = 64 << 10
WINDOW_BYTES = 4 << 10
TAIL_BYTES = 64 << 10
MASK = b"*"


class Withheld:
    """One body's. `keep_bytes` are withheld, if there are as many; `whole_bytes` is the length that was told."""

    __slots__ = ("_at", "_data", "_keep_bytes", "_whole_bytes")

    def __init__(self, keep_bytes: int, whole_bytes: int | None = None) -> None:
        self._keep_bytes, self._whole_bytes = keep_bytes, whole_bytes
        self._data: bytes | bytearray = b""
        self._at = 0  # where it begins

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """The next of the body."""
        self._data = self._data + data if self._data else data

    def due(self) -> bytes:
        """What may go on though more is to come."""
        is_whole = self._whole_bytes is not None and self._at + len(self._data) >= self._whole_bytes
        return self._take(len(self._data) - max(self._keep_bytes, 1 if is_whole else 0))

    def idle(self) -> bytes:
        """What may go on because nothing has come for a while: somebody waits for it, perhaps."""
        is_whole = self._whole_bytes is not None and self._at + len(self._data) >= self._whole_bytes
        return b"" if is_whole else self._take(len(self._data))

    def rest(self) -> bytes:
        """All of it: the body is complete."""
        return self._take(len(self._data))

    def mask(self, offset: int, size_bytes: int) -> bool:
        """Make these bytes unreadable, as many as they were. False, and nothing done, where some have gone on."""
        begin = offset - self._at
        if begin < 0 or size_bytes < 1 or begin + size_bytes > len(self._data):
            return False
        data = self._data = bytearray(self._data)
        data[begin : begin + size_bytes] = MASK * size_bytes
        return True

    def _take(self, size_bytes: int) -> bytes:
        if size_bytes <= 0:
            return b""
        data, self._data = bytes(self._data[:size_bytes]), self._data[size_bytes:]
        self._at += size_bytes
        return data


def withheld(delivery: Delivery, whole_bytes: int | None, *, masks: bool) -> Withheld:
    """For a body that is not held as a whole."""
    match delivery:
        case Delivery.HOLD:
            keep_bytes = WINDOW_BYTES if masks else 0
        case Delivery.WINDOW:
            keep_bytes = WINDOW_BYTES
        case Delivery.TAIL:
            keep_bytes = TAIL_BYTES
    return Withheld(keep_bytes, whole_bytes)
