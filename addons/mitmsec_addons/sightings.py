"""What really stands where a trigger has fired: a window around it, read again by expressions that prove more.

    ──────── stream ───────────────┬─ hits, close together ─┬─────────────────────────────
              ◄── before ──────────┤        a range         ├──── after ──►
              context              └ Shape.found, then its checks ┘      context

A range waits until what is behind it is known, or the stream ends, and ranges are looked at in the order in which they
stop waiting; so whoever reads a stream finds the same, however it was cut: where ranges begin and end depends on hits
alone, and those on the bytes alone. What is kept of a stream is as long as its open ranges and their windows: a range
that grows past RANGE_BYTES is closed, and another begins.

A shape is sought from its reach before its range on, so that one that began in an earlier range is met whole; what was
found already is not told again. Once there is `enough`, the rest of the stream costs nothing: it is not looked at.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from mitmsec.core.model import Value
from mitmsec_addons.triggers import Engine, Trigger, compiled

CONTEXT_BYTES = 96  # before and behind what was found, where words may speak for it or against it
SHAPE_BYTES = 128  # of what is looked for, where a shape says nothing else
BEFORE_BYTES = SHAPE_BYTES + CONTEXT_BYTES
AFTER_BYTES = SHAPE_BYTES + CONTEXT_BYTES
RANGE_BYTES = 8192
STEP_BYTES = 16384  # looked at before the next so many are scanned, so that where there is enough little was in vain
_MORE = b"\0"  # stands for what is behind a window, so that no expression takes its end for the stream's

type Check = Callable[[bytes, bytes], float]
"""How sure it is (0: it is nothing) that these bytes are it, in this context, which holds them too."""


class Shape(Value, frozen=True):
    """Something that can be found. Of an expression with groups, the first one that took part is it."""

    name: str
    trigger: Trigger
    found: re.Pattern[bytes] | bytes
    """Bytes are compiled when they are needed."""
    check: Check
    admits: Callable[[re.Match[bytes]], bool] | None = None
    """Whether the match as a whole can be it; asked about what the check has let pass."""
    needs: re.Pattern[bytes] | None = None
    """Without this in its context it is none, and not checked."""
    tries: int | None = None
    """So many that are none, within RANGE_BYTES, and no more are looked at there."""
    reach_bytes: int = SHAPE_BYTES
    """So long is what is found, with what its expression asks for around it, at most."""
    is_whole: bool = False
    """Where the trigger ends, it ends, too."""
    begins: tuple[bytes, ...] = ()
    """With one of these, in any case (here the lower), each match begins: sooner looked for than the expression."""


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
        self.before_bytes = max((shape.reach_bytes for shape in self.shapes), default=0) + CONTEXT_BYTES
        self.after_bytes = [
            CONTEXT_BYTES + (0 if shape.is_whole and self.engine.tells_ends else shape.reach_bytes)
            for shape in self.shapes
        ]
        self._expressions: dict[int, re.Pattern[bytes]] = {}

    def expression(self, number: int) -> re.Pattern[bytes]:
        """What finds that shape."""
        found = self._expressions.get(number)
        if found is None:
            found = self._expressions[number] = re.compile(self.shapes[number].found)
        return found


class _Range:
    __slots__ = ("begin", "end", "number", "ripe")

    def __init__(self, number: int, at: int) -> None:
        self.number = number
        self.begin = self.end = at
        self.ripe = 0  # where in the stream enough is known of what is behind it


class Sightings:
    """One stream being read. What is less sure than `sure` is not told; `enough` of the others end it."""

    __slots__ = (
        "_closed", "_enough", "_fresh", "_kept", "_offset", "_open", "_past", "_scan", "_shapes", "_sure", "_told",
        "ended",
    )  # fmt: skip

    def __init__(self, shapes: Shapes, *, sure: float = 0.0, enough: int | None = None) -> None:
        self._shapes = shapes
        self._scan = shapes.engine.open()
        self._sure, self._enough, self._told = sure, enough, 0
        self._kept = b""
        self._fresh = b""  # what is being fed, behind it: the most is scanned, and never copied
        self._offset = 0  # of the first byte kept in the stream
        self._open: dict[int, _Range] = {}
        self._closed: list[_Range] = []
        self._past: dict[int, int] = {}  # where in the stream the last one found of each shape ends
        self.ended: int | None = None
        """From this offset on nothing was looked at, because there was enough before."""

    def feed(self, data: bytes) -> Sequence[Sighting]:
        """What these bytes make certain."""
        found: list[Sighting] = []
        known, self._fresh = self._offset + len(self._kept), data
        for at in range(0, len(data), STEP_BYTES):
            if self.ended is not None:
                break
            step = data[at : at + STEP_BYTES]
            known += len(step)
            for number, end in self._scan.feed(step):
                self._hit(number, end)
            found += self._looked(known, is_over=False)
        self._let_go(known)
        return found

    def close(self) -> Sequence[Sighting]:
        """What only the end makes certain."""
        last = self._scan.close()
        if self.ended is not None:
            return ()
        for number, end in last:
            self._hit(number, end)
        return self._looked(self._offset + len(self._kept), is_over=True)

    def _hit(self, number: int, end: int) -> None:
        after = self._shapes.after_bytes[number]
        one = self._open.get(number)
        if one is not None:
            if end - one.end < after and end - one.begin < RANGE_BYTES:
                one.end, one.ripe = end, end + after
                return
            self._closed.append(one)
        one = self._open[number] = _Range(number, end)
        one.ripe = end + after

    def _looked(self, known: int, *, is_over: bool) -> list[Sighting]:
        if not self._open and not self._closed:
            return []
        ripe_to = known if not is_over else known + self._shapes.before_bytes
        ripe = [one for one in (*self._closed, *self._open.values()) if one.ripe <= ripe_to]
        if ripe:
            self._closed = [one for one in self._closed if one.ripe > ripe_to]
            self._open = {number: one for number, one in self._open.items() if one.ripe > ripe_to}
        found: list[Sighting] = []
        for one in sorted(ripe, key=lambda one: (one.ripe, one.number)):
            for seen in self._seen(one, known, is_over=is_over):
                if seen.confidence >= self._sure:
                    found.append(seen)
                    self._told += 1
                if self._told == self._enough:
                    self._end(seen.offset + len(seen.what))
                    return found
        return found

    def _end(self, offset: int) -> None:
        self.ended = offset
        self._closed.clear()
        self._open.clear()

    def _let_go(self, known: int) -> None:
        waiting = [one.begin for one in self._closed] + [one.begin for one in self._open.values()]
        first = max(min(waiting, default=known) - self._shapes.before_bytes - 1, self._offset)
        self._kept = self._window(first, known) if self.ended is None else b""
        self._offset, self._fresh = first, b""

    def _window(self, first: int, last: int) -> bytes:
        """What stands there, of what is kept and fresh."""
        begin, end = first - self._offset, last - self._offset
        fresh_at = len(self._kept)
        if begin >= fresh_at:
            return self._fresh[begin - fresh_at : end - fresh_at]
        return self._kept[begin:end] + self._fresh[: max(end - fresh_at, 0)]

    def _seen(self, one: _Range, known: int, *, is_over: bool) -> Iterator[Sighting]:
        shape = self._shapes.shapes[one.number]
        found = self._shapes.expression(one.number)
        first = max(one.begin - shape.reach_bytes - CONTEXT_BYTES, self._offset)
        last = min(one.ripe, known)
        window = self._window(first, last)
        if not is_over or last < known:
            window += _MORE
        at = max(one.begin - shape.reach_bytes, self._past.get(one.number, 0), first) - first
        if (near := _near(shape, window)) is None:
            return
        tries, spots = shape.tries, _spots(shape.begins, window)
        while (match := _next(found, window, at, spots)) and first + match.start() < one.end:  # else the next range's
            begin, end = match.span(group_of(match))
            confidence = 0.0
            if first + match.end() <= last and near(begin, end):
                context = window[max(begin - CONTEXT_BYTES, 0) : end + CONTEXT_BYTES]
                confidence = shape.check(window[begin:end], context)
            if confidence <= 0 or not (shape.admits is None or shape.admits(match)):
                at = max(begin, match.start() + 1)  # what is none may hide the beginning of one
                if tries is not None and (tries := tries - 1) <= 0:
                    return
                continue
            at = max(match.end(), match.start() + 1)
            self._past[one.number] = first + at
            yield Sighting(shape.name, first + begin, window[begin:end], confidence)


def _spots(words: Sequence[bytes], window: bytes) -> list[int] | None:
    """Where one of these words stands in it, in any case, in order; None: there are none to look for."""
    if not words:
        return None
    lowered, spots = window.lower(), []
    for word in words:
        at = lowered.find(word)
        while at >= 0:
            spots.append(at)
            at = lowered.find(word, at + 1)
    return sorted(spots)


def _next(found: re.Pattern[bytes], window: bytes, at: int, spots: list[int] | None) -> re.Match[bytes] | None:
    """The first match from `at` on; where `spots` are known, matches begin at them and nowhere else."""
    if spots is None:
        return found.search(window, at)
    tried = (found.match(window, spot) for spot in spots[bisect_left(spots, at) :])
    return next(filter(None, tried), None)


def _near(shape: Shape, window: bytes) -> Callable[[int, int], bool] | None:
    """Whether what the shape needs may be near what stands from `begin` to `end`; None: it is not in the window."""
    if shape.needs is None:
        return lambda begin, end: True
    spots = [match.start() for match in shape.needs.finditer(window)]
    if not spots:
        return None

    def near(begin: int, end: int) -> bool:
        at = bisect_left(spots, begin - CONTEXT_BYTES)
        return at < len(spots) and spots[at] < end + CONTEXT_BYTES

    return near


def group_of(match: re.Match[bytes]) -> int:
    """The first that took part, or all of it."""
    if match.lastindex in (None, 1):  # as most: none, or no other
        return match.lastindex or 0
    return next((number for number in range(1, match.re.groups + 1) if match.start(number) >= 0), 0)
