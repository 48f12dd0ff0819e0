"""What the bytes of a fuzzer choose. Any bytes are choices; when they end, the first of everything is chosen."""

from __future__ import annotations

from collections.abc import Sequence


class Choices:
    """Takes choices off the front of `data`, a byte each, so that a byte that changes changes one of them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """There are bytes left."""
        return self._at < len(self._data)

    def below(self, most: int) -> int:
        """0 to `most` - 1, of at most 256."""
        byte = self._data[self._at] if self else 0
        self._at += 1
        return byte % most

    def one_of[T](self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def flag(self) -> bool:
        return bool(self.below(2))

    def rest(self) -> bytes:
        at, self._at = self._at, len(self._data)
        return self._data[at:]
