"""What really stands where a trigger has fired: a window around it, read again by expressions that prove more.

    ──────── stream ───────────────┬─ hits, close together ─┬─────────────────────────────
              ◄── BEFORE_BYTES ────┤        a range         ├──── AFTER_BYTES ──►
              context              └ Shape.found, then its checks ┘      context

A range waits until what is behind it is known, or the stream ends; so whoever reads a stream finds the same, however it
was cut: where ranges begin and end depends on hits alone, and those on the bytes alone. What is kept of a stream is as
long as its open ranges and their windows: a range that grows past RANGE_BYTES is closed, and another begins.

A shape is sought from SHAPE_BYTES before its range on, so that one that began in an earlier range is met whole; what
was found already is not told again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from mitmsec.core.model import Value
from mitmsec_addons.triggers import Engine, Trigger, compiled

CONTEXT_BYTES = 96  # before and behind what was found, where words may speak for it or against it
SHAPE_BYTES = 128  # of what is looked for, at most
BEFORE_BYTES = SHAPE_BYTES + CONTEXT_BYTES
AFTER_BYTES = SHAPE_BYTES + CONTEXT_BYTES
RANGE_BYTES = 8192

type Check = Callable[[bytes, bytes], float]
"""How sure it is (0: it is nothing) that these bytes are it, in this context, which holds them too."""


class Shape(Value, frozen=True):
    """Something that can be found. Of an expression with a group, the group is it."""

    name: str
    trigger: Trigger
    found: re.Pattern[bytes]
    check: Check


class Sighting(Value, frozen=True):
    """It was found; `offset` is that of its first byte in the stream."""

    shape: str
    offset: int
    what: bytes
    confidence: float


class Shapes:
    """Some shapes, compiled: made once."""

    def __init__(self, shapes: Sequence[Shape], compile_triggers: Callable[[Sequence[Trigger]], Engine] = compiled):
        self.shapes = tuple(shapes)
        self.engine = compile_triggers([shape.trigger for shape in self.shapes])


class _Range:
    __slots__ = ("begin", "end")

    def __init__(self, at: int) -> None:
        self.begin = self.end = at


class Sightings:
    """One stream being read."""

    __slots__ = ("_buffer", "_closed", "_offset", "_open", "_past", "_scan", "_shapes")

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes.shapes
        self._scan = shapes.engine.open()
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the stream
        self._open: dict[int, _Range] = {}
        self._closed: list[tuple[int, _Range]] = []
        self._past = [0] * len(self._shapes)  # where in the stream the last one found of each shape ends

    def feed(self, data: bytes) -> Sequence[Sighting]:
        """What these bytes make certain."""
        self._buffer += data
        for number, end in self._scan.feed(data):
            self._hit(number, end)
        known = self._offset + len(self._buffer)
        for number, one in list(self._open.items()):
            if known - one.end >= AFTER_BYTES:
                self._closed.append((number, self._open.pop(number)))
        return self._looked(known)

    def close(self) -> Sequence[Sighting]:
        """What only the end makes certain."""
        self._scan.close()
        self._closed += self._open.items()
        self._open.clear()
        return self._looked(None)

    def _hit(self, number: int, end: int) -> None:
        one = self._open.get(number)
        if one is not None and end - one.end < AFTER_BYTES and end - one.begin < RANGE_BYTES:
            one.end = end
            return
        if one is not None:
            self._closed.append((number, one))
        self._open[number] = _Range(end)

    def _looked(self, known: int | None) -> list[Sighting]:
        """In the order of their offsets. Ranges that were closed by another one may have to wait for more."""
        found: list[Sighting] = []
        waiting: list[tuple[int, _Range]] = []
        for number, one in self._closed:
            if known is None or known - one.end >= AFTER_BYTES:
                found += self._seen(number, one)
            else:
                waiting.append((number, one))
        self._closed = waiting
        self._let_go()
        return sorted(found, key=lambda sighting: sighting.offset)

    def _let_go(self) -> None:
        waiting = [one.begin for _, one in self._closed] + [one.begin for one in self._open.values()]
        keep = min(waiting, default=self._offset + len(self._buffer)) - BEFORE_BYTES - 1
        if (passed := keep - self._offset) > 0:
            del self._buffer[:passed]
            self._offset += passed

    def _seen(self, number: int, one: _Range) -> Iterator[Sighting]:
        shape = self._shapes[number]
        start = max(one.begin - BEFORE_BYTES - self._offset, 0)
        window = bytes(self._buffer[start : one.end + AFTER_BYTES - self._offset])
        first = self._offset + start
        at = max(one.begin - SHAPE_BYTES, self._past[number], first) - first
        group = 1 if shape.found.groups else 0
        while (match := shape.found.search(window, at)) and first + match.start() < one.end:  # else the next range's
            begin, end = match.span(group)
            context = window[max(begin - CONTEXT_BYTES, 0) : end + CONTEXT_BYTES]
            confidence = shape.check(match.group(group), context)
            if confidence <= 0:
                at = match.start() + 1  # what is none may hide the beginning of one
                continue
            at = max(match.end(), match.start() + 1)
            self._past[number] = first + at
            yield Sighting(shape.name, first + begin, match.group(group), confidence)
