"""One budget for all that is unpacked from a part, however deep it lies: bytes, expansion, entries, depth, time.

what came in ──► Budget ◄── what came out, at every depth
                    └► Spent, at every depth; told once
"""

from __future__ import annotations

from collections.abc import Callable

TOTAL_BYTES = 512 << 20
RATIO = 100
FREE_BYTES = 4 << 20  # so much may come out before the ratio counts
ENTRIES = 10_000
DEPTH = 8
CALL_S = 0.6  # computed in one call; the worker would interrupt it after 1 s, and tell no reason


class Spent(Exception):
    """The text says what there is too much of."""


class Budget:
    """`clock` tells seconds of this process's own time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_bytes = self._out_bytes = self._entries = 0
        self._until_s = clock() + CALL_S
        self._why = ""
        self._is_told = False

    def begins(self, size_bytes: int) -> None:
        """Another call, with so much of the part itself."""
        self._in_bytes += size_bytes
        self._until_s = self._clock() + CALL_S

    def unpacked(self, size_bytes: int) -> None:
        """So much more came out of something. Raises Spent."""
        self._out_bytes += size_bytes
        if self._out_bytes > FREE_BYTES + RATIO * self._in_bytes:
            self._spend(f"unpacks to more than {RATIO} times its size")
        if self._out_bytes > TOTAL_BYTES:
            self._spend(f"unpacks to more than {TOTAL_BYTES} bytes")
        self.check()

    def entry(self, depth: int) -> None:
        """Another entry, so deep. Raises Spent."""
        self._entries += 1
        if self._entries > ENTRIES:
            self._spend(f"has more than {ENTRIES} entries")
        if depth > DEPTH:
            self._spend(f"is packed more than {DEPTH} times")
        self.check()

    def check(self) -> None:
        """Raises Spent, where it is, and where a call takes too long."""
        if self._clock() > self._until_s:
            self._spend(f"takes more than {CALL_S} s to unpack")
        if self._why:
            raise Spent(self._why)

    def told(self) -> bool:
        """Whether somebody has told already that it is spent; from now on, somebody has."""
        before, self._is_told = self._is_told, True
        return before

    def _spend(self, why: str) -> None:
        self._why = self._why or why
