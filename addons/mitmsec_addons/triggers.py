"""Where in a stream something may end: many expressions at once, by Hyperscan or, where there is none, without.

    feed(slice) ──► hits: (which expression, the offset behind its last byte), in the order of the offsets

A hit says that it is worth while to look, and no more: `sightings` looks. Both engines tell the end of each match; they
may differ in which of several ends of one run of bytes they tell, so nothing may depend on that. An expression spans
REACH_BYTES at most and is the same to both: classes, groups, bounded repetition, `\\b`.

Where there is no Hyperscan and an expression names words, of which one stands in whatever it matches, those are looked
for in its place (`ByWords`), and a hit is the end of such a word: hundreds of expressions are nothing for `re`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mitmsec.core.model import Value

try:
    import hyperscan
except ImportError:  # no wheel for this machine
    hyperscan = None  # type: ignore[assignment]

REACH_BYTES = 128

type Hit = tuple[int, int]


class Trigger(Value, frozen=True):
    """An expression."""

    expression: str
    caseless: bool = False
    words: tuple[str, ...] = ()  # ASCII, in lower case; what it matches holds one of them, in any case


class Scan(Protocol):
    """One stream being read. Not thread-safe."""

    def feed(self, data: bytes) -> Sequence[Hit]: ...
    def close(self) -> Sequence[Hit]:
        """What ends only with the stream. To be called once."""


class Engine(Protocol):
    """Expressions, compiled."""

    tells_ends: bool
    """A hit is the end of a match. Otherwise it is the end of a word in it."""

    def open(self) -> Scan: ...


def compiled(triggers: Sequence[Trigger], dumped: bytes | None = None) -> Engine:
    """The faster engine that there is. Raises ValueError for what it does not take."""
    return _compiled_without(triggers) if hyperscan is None else ByHyperscan(triggers, dumped)


def _compiled_without(triggers: Sequence[Trigger]) -> Engine:
    return ByWords(triggers) if triggers and all(trigger.words for trigger in triggers) else ByRe(triggers)


class ByHyperscan:
    """A streaming database; half a millisecond for each expression of ours, some more for the hundreds of others.

    `dumped` is one of the same expressions. It is believed: whoever makes one can do here what he likes.
    """

    tells_ends = True

    def __init__(self, triggers: Sequence[Trigger], dumped: bytes | None = None) -> None:
        if dumped is not None:
            try:
                self._database = hyperscan.loadb(dumped, hyperscan.HS_MODE_STREAM)
                self._database.scratch = hyperscan.Scratch(self._database)  # one that is compiled has its own
            except (hyperscan.HyperscanError, ValueError) as error:
                raise ValueError(f"a database that is not for this machine: {error}") from error
            return
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_STREAM)
        try:
            self._database.compile(
                expressions=[trigger.expression.encode() for trigger in triggers],
                ids=list(range(len(triggers))),
                elements=len(triggers),
                flags=[hyperscan.HS_FLAG_CASELESS if trigger.caseless else 0 for trigger in triggers],
            )
        except hyperscan.HyperscanError as error:
            raise ValueError(f"an expression that Hyperscan does not take: {error}") from error

    def dumped(self) -> bytes:
        """For `dumped`, on a machine with the same Hyperscan and processor."""
        return bytes(hyperscan.dumpb(self._database))

    def open(self) -> Scan:
        """A stream of its own."""
        return _HyperscanStream(self._database)


class _HyperscanStream:
    """The binding holds neither callback nor database: used when freed, they crash the process. So both are here."""

    __slots__ = ("_context", "_database", "_hits", "_stream", "_told")

    def __init__(self, database: Any) -> None:
        self._database = database
        self._hits: list[Hit] = []
        self._told: Callable[..., None] = self._tell
        self._context: AbstractContextManager[Any] = database.stream(match_event_handler=self._told)
        self._stream = self._context.__enter__()

    def feed(self, data: bytes) -> Sequence[Hit]:
        self._stream.scan(data)
        hits, self._hits = self._hits, []
        return hits

    def close(self) -> Sequence[Hit]:
        self._context.__exit__(None, None, None)
        return self._hits

    def _tell(self, number: int, _begin: int, end: int, _flags: int, _context: object) -> None:
        self._hits.append((number, end))


class ByRe:
    """One expression after another over each slice, with the end of the last one before it."""

    tells_ends = True

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        try:
            self._expressions = [
                re.compile(trigger.expression.encode(), re.IGNORECASE if trigger.caseless else 0)
                for trigger in triggers
            ]
        except re.error as error:
            raise ValueError(f"an expression that re does not take: {error}") from error

    def open(self) -> Scan:
        """A stream of its own."""
        return _ReStream(self._expressions)


class _ReStream:
    __slots__ = ("_before", "_expressions", "_offset")

    def __init__(self, expressions: Sequence[re.Pattern[bytes]]) -> None:
        self._expressions = expressions
        self._before = b""
        self._offset = 0  # of `_before` in the stream

    def feed(self, data: bytes) -> Sequence[Hit]:
        known, buffer = len(self._before), self._before + data
        hits = [
            (number, self._offset + match.end())
            for number, expression in enumerate(self._expressions)
            for match in expression.finditer(buffer)
            if match.end() > known
        ]
        self._before = buffer[-REACH_BYTES:]
        self._offset += len(buffer) - len(self._before)
        return sorted(hits, key=lambda hit: hit[1])

    def close(self) -> Sequence[Hit]:
        self._before = b""
        return ()


class ByWords:
    """Each word by itself, as C looks for it: faster than one automaton in Python, and needs nothing installed."""

    tells_ends = False

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self._numbers: dict[bytes, list[int]] = {}
        for number, trigger in enumerate(triggers):
            for word in trigger.words:
                self._numbers.setdefault(word.encode(), []).append(number)

    def open(self) -> Scan:
        """A stream of its own."""
        return _WordStream(self._numbers)


class _WordStream:
    __slots__ = ("_before", "_numbers", "_offset", "_reach")

    def __init__(self, numbers: Mapping[bytes, Sequence[int]]) -> None:
        self._numbers = numbers
        self._reach = max(map(len, numbers), default=1) - 1
        self._before = b""
        self._offset = 0  # of `_before` in the stream

    def feed(self, data: bytes) -> Sequence[Hit]:
        known, buffer = len(self._before), self._before + data.lower()
        ends = [
            (end, number)
            for word, numbers in self._numbers.items()
            for end in _ends(word, buffer, known)
            for number in numbers
        ]
        hits = [(number, self._offset + end) for end, number in sorted(ends)]
        self._before = buffer[len(buffer) - self._reach :] if len(buffer) > self._reach else buffer
        self._offset += len(buffer) - len(self._before)
        return hits

    def close(self) -> Sequence[Hit]:
        self._before = b""
        return ()


def _ends(word: bytes, buffer: bytes, known: int) -> Iterator[int]:
    at = buffer.find(word, max(known - len(word) + 1, 0))
    while at >= 0:
        yield at + len(word)
        at = buffer.find(word, at + 1)
