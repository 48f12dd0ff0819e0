"""How much may lie in STATE/quarantine, of all sessions together and of each.

    4 GiB ├──────── anybody's ────────┤── of who has less than a sixteenth ──┤
          0                       3/4 of it                                all

What lies there and what still comes counts alike, and each item for LEAST_BYTES at least, for its name takes room too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

LIMIT_BYTES = 4 << 30
LEAST_BYTES = 256 << 10  # so there are 16,384 items at most


class Room:
    """Pure: told what is there, it says what may come."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, least_bytes: int = LEAST_BYTES) -> None:
        self._limit_bytes, self._least_bytes = limit_bytes, least_bytes
        self._held: dict[str, tuple[str, int]] = {}  # item → session, bytes
        self._bytes_of = Counter[str]()  # by session
        self.used_bytes = 0

    def __contains__(self, item: str) -> bool:
        return item in self._held

    def found(self, item: str, size_bytes: int) -> None:
        """It lies there already, whosever it is."""
        self._set(item, "", max(size_bytes, self._least_bytes))

    def take(self, item: str, session: str, size_bytes: int) -> bool:
        """Whether `item` may have so many bytes in all; then they are counted."""
        size_bytes = max(size_bytes, self._least_bytes)
        more_bytes = size_bytes - self._held.get(item, ("", 0))[1]
        is_small = self._bytes_of[session] + more_bytes <= self._limit_bytes // 16
        limit_bytes = self._limit_bytes if is_small else self._limit_bytes * 3 // 4
        if self.used_bytes + more_bytes > limit_bytes:
            return False
        self._set(item, session, size_bytes)
        return True

    def free(self, item: str) -> None:
        """It is not there any more. Idempotent."""
        self._set(item, "", 0)

    def keep(self, there: Container[str]) -> None:
        """What is not `there` has been removed by somebody."""
        for item in [item for item in self._held if item not in there]:
            self.free(item)

    def _set(self, item: str, session: str, size_bytes: int) -> None:
        before, before_bytes = self._held.pop(item, ("", 0))
        self.used_bytes += size_bytes - before_bytes
        self._bytes_of[before] -= before_bytes
        self._bytes_of[session] += size_bytes
        if not self._bytes_of[before]:
            del self._bytes_of[before]
        if size_bytes:
            self._held[item] = (session, size_bytes)
