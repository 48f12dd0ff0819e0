"""Who is next, where many wait for one: those of one key in their order, and keys in turn.

a1 a2 a3 b1 c1 ──► a1 b1 c1 a2 a3
"""

from __future__ import annotations

from collections import deque


class FairQueue[T]:
    """Things that wait, each under a key: whoever has many of them waiting holds up only himself."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # no key without anything; the next one is in front

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, key: str, one: T) -> None:
        """Behind what waits under this key."""
        self._waiting.setdefault(key, deque()).append(one)

    def pop(self) -> T:
        """The next; its key then waits behind all others. Raises LookupError where nothing waits."""
        key = next(iter(self._waiting), None)
        if key is None:
            raise LookupError("nothing waits")
        waiting = self._waiting.pop(key)
        one = waiting.popleft()
        if waiting:
            self._waiting[key] = waiting
        return one

    def discard(self, key: str, one: T) -> None:
        """It waits no longer, if it did."""
        waiting = self._waiting.get(key)
        if waiting is None or one not in waiting:
            return
        waiting.remove(one)
        if not waiting:
            del self._waiting[key]
