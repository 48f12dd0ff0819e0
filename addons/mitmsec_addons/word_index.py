"""Which of a thousand words stand in a short text: by their first three characters, so most are never looked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

STEM_CHARACTERS = 3


class WordIndex[T]:
    """Words, and what each of them stands for. Shorter ones than a stem are looked for each time."""

    __slots__ = ("_by_stem", "_short")

    def __init__(self, pairs: Iterable[tuple[bytes, T]]) -> None:
        self._by_stem: dict[bytes, list[tuple[bytes, T]]] = {}
        self._short: list[tuple[bytes, T]] = []
        for word, meant in pairs:
            long = self._by_stem.setdefault(word[:STEM_CHARACTERS], []) if len(word) >= STEM_CHARACTERS else self._short
            long.append((word, meant))

    def within(self, text: bytes) -> Iterator[T]:
        """What the words in it stand for, in no order; of some words the same may come several times."""
        stems = {text[at : at + STEM_CHARACTERS] for at in range(len(text) - STEM_CHARACTERS + 1)}
        for stem in stems & self._by_stem.keys():
            yield from (meant for word, meant in self._by_stem[stem] if word in text)
        yield from (meant for word, meant in self._short if word in text)
