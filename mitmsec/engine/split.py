"""Bodies of several contents: each is a part of its own for inspectors, and what they find in it names it.

body ──► content coding undone ──► Multipart | GrpcMessages (core.body_parts) ──► Reading, one after the other
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from msgspec.structs import replace

from mitmsec.core.body_parts import Event, Mark, Opened, Splitter, Unreadable, splitter
from mitmsec.core.inspection import Part, PartKind
from mitmsec.engine.content import Decoder, Identity, Undecodable, decoder, is_coded
from mitmsec.engine.turns import TURN_S, Paced
from mitmsec.engine.watch import NOT_INSPECTED, Mask, Reading, Watch


def open_body(watch: Watch, part: Part, codings: str, message_coding: str = "") -> Reading | SplitReading | None:
    """A reading of a body, or None where no inspector has business. Raises Blocked."""
    made = splitter(part.content_type, message_coding) if part.content_type else None
    if made is not None:
        return SplitReading(watch, part, made, codings)
    reading = watch.open(part, codings)
    if reading is not None and watch.unpacks:
        reading.unfolds = True
    return reading


class SplitReading(Paced):
    """As `Reading`, for a body of several contents."""

    unfolds = True
    """A few bytes may be a content."""

    def __init__(self, watch: Watch, part: Part, made: Splitter, codings: str) -> None:
        super().__init__()
        self._watch, self._part, self._splitter = watch, part, made
        self._decoder: Decoder | None = Identity()
        self._current: Reading | None = None
        self._is_open = False  # the current content is being read, or nobody wants it
        self._begins_at = 0
        self.mask: Mask | None = None
        try:
            self._decoder = decoder(codings)
        except Undecodable as error:
            self._give_up(error)

    @property
    def waits(self) -> bool:
        """Somebody may have to be awaited."""
        return self._watch.waits

    def steps(self, data: bytes) -> Iterator[None]:
        for piece in self._events(data):
            match piece:
                case bytes():
                    self._begin()
                    if self._current is not None:
                        yield from self._current.steps(piece)
                case Opened():
                    if self._current is not None:
                        self._current.close()
                    self._next(piece)
                case _:
                    self._aside(piece)
            yield

    def has_all(self) -> None:
        """As of Reading; where one of several contents ends, only what follows it tells."""

    def settle(self) -> None:
        """Ask about what was fed."""
        if self._current is not None:
            self._current.settle()

    def close(self) -> None:
        """The body is complete, or broke off."""
        self.leave()
        for _ in self.steps(b""):
            pass
        if self._current is not None:
            current, self._current = self._current, None
            current.close()

    async def read(self, data: bytes, *, ends: bool) -> None:
        """As `Reading.read`."""
        if not self.waits:
            if data:
                self.feed(data)
            await self.catch_up()
            return self.close() if ends else self.settle()
        begun_s = time.process_time()
        for piece in self._all(data, ends=ends):
            if time.process_time() - begun_s > TURN_S:
                await asyncio.sleep(0)
                begun_s = time.process_time()
            match piece:
                case bytes():
                    self._begin()
                    if self._current is not None:
                        await self._current.read(piece, ends=False)
                case Opened():
                    if self._current is not None:
                        await self._current.read(b"", ends=True)
                    self._next(piece)
                case _:
                    self._aside(piece)
        if ends and self._current is not None:
            await self._current.read(b"", ends=True)
            self._current = None

    def abandon(self) -> None:
        """As `Reading.abandon`."""
        if self._current is not None:
            self._current.abandon()

    def _aside(self, event: Unreadable | Mark) -> None:
        if isinstance(event, Unreadable):
            self._watch.failed(NOT_INSPECTED, f"{self._part.content_type.partition(';')[0]}: {event.why}")

    def _all(self, data: bytes, *, ends: bool) -> Iterator[Event]:
        if data:
            yield from self._events(data)
        if ends:
            yield from self._rest()

    def _events(self, data: bytes) -> Iterator[Event]:
        if self._decoder is None:
            return
        if not data:
            yield from self._rest()
            return
        try:
            for piece in self._decoder.feed(data):
                yield from self._splitter.feed(piece)
        except Undecodable as error:
            self._give_up(error)

    def _rest(self) -> Iterator[Event]:
        if self._decoder is not None:
            self._decoder = None
            yield from self._splitter.close()

    def _begin(self) -> None:
        """What comes before the first part is read as well, under no name."""
        if not self._is_open:
            self._open(self._part, "")

    def _next(self, opened: Opened) -> None:
        part = replace(
            self._part,
            name=opened.name + self._part.name,
            content_type=opened.content_type or self._part.content_type,
            file_name=opened.file_name,
        )
        if opened.head:
            self._watch.look(replace(part, kind=PartKind.HEADERS), opened.head)
        self._begins_at = opened.at
        self._open(part, opened.codings)

    def _open(self, part: Part, codings: str) -> None:
        self._is_open = True
        self._current = self._watch.open(part, codings)
        if self._current is not None:
            self._current.unfolds = True
        if self._current is not None and self.mask is not None and not is_coded(codings):
            mask, at = self.mask, self._begins_at
            self._current.mask = lambda offset, size_bytes: mask(at + offset, size_bytes)

    def _give_up(self, error: Exception) -> None:
        self._decoder = None
        if self._current is not None:
            self._current.settle()
            self._current.abandon()
            self._current = None
        self._watch.failed(NOT_INSPECTED, str(error))
