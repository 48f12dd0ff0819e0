"""Where in a stream something may end: many expressions at once, by Hyperscan or, where there is none, by `re`.

    feed(slice) ──► hits: (which expression, the offset behind its last byte), in the order of the offsets

A hit says that it is worth while to look, and no more: `sightings` looks. Both engines tell the end of each match; they
may differ in which of several ends of one run of bytes they tell, so nothing may depend on that. An expression spans
REACH_BYTES at most and is the same to both: classes, groups, bounded repetition, `\\b`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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


class Scan(Protocol):
    """One stream being read. Not thread-safe."""

    def feed(self, data: bytes) -> Sequence[Hit]: ...
    def close(self) -> None:
        """To be called once."""


class Engine(Protocol):
    """Expressions, compiled."""

    def open(self) -> Scan: ...


def compiled(triggers: Sequence[Trigger]) -> Engine:
    """The faster engine that there is. Raises ValueError for an expression that it does not take."""
    return ByRe(triggers) if hyperscan is None else ByHyperscan(triggers)


class ByHyperscan:
    """A streaming database; half a millisecond for each expression of ours."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
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

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def _tell(self, number: int, _begin: int, end: int, _flags: int, _context: object) -> None:
        self._hits.append((number, end))


class ByRe:
    """One expression after another over each slice, with the end of the last one before it."""

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

    def close(self) -> None:
        self._before = b""
