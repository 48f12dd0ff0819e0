"""Plaintext that is not HTTP, or is no longer: both directions, to the inspectors, piece by piece.

Where some of them have to be awaited, `read` stands for `feed`. What has no end but its direction's has gone on when
they hear that: only the end itself can wait for their verdict. So where that could stop the flow, it is said when such
a stream opens, and `on_failure` decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial

from mitmsec.core.inspection import Part
from mitmsec.core.messages import HandOver
from mitmsec.engine import websocket
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.turns import TURN_S, Paced
from mitmsec.engine.watch import NOT_INSPECTED, Asks, Blocked, Reading, Watch
from mitmsec.engine.websocket import BadFrames, Frames

UNHEARD = "what is neither HTTP, WebSocket nor mail goes on before an inspector that has to be awaited has its end"


class Stream:
    """Bytes in both directions of one connection. Methods raise Blocked, and so does the making."""

    def __init__(self, watch: Watch, sent: Part, received: Part, asks: Asks = Asks.ALL) -> None:
        self._watch = watch
        self._readings: dict[bool, Reading | None] = {
            part.sent: watch.open(part, asks=asks) for part in (sent, received)
        }
        if watch.prompt and any(reading is not None and reading.waits for reading in self._readings.values()):
            try:
                watch.failed(NOT_INSPECTED, UNHEARD)
            except Blocked:
                self.close()
                raise

    @property
    def waits(self) -> bool:
        """Somebody has to be awaited: it has to be read with `read`, and each direction ended with `end`."""
        return any(reading is not None and reading.waits for reading in self._readings.values())

    def feed(self, data: bytes, *, sent: bool) -> None:
        """The next bytes of one direction."""
        reading = self._readings[sent]
        if reading is not None:
            reading.feed(data)

    @property
    def is_behind(self) -> bool:
        """Some of what was fed has not been read: somebody has to let it `catch_up` before anything goes on."""
        return False

    async def catch_up(self) -> None:
        """Returns when all that was fed has been read."""

    async def read(self, data: bytes, *, sent: bool) -> bytes:
        """The same as `feed`, returning when all have looked: what of it goes on."""
        reading = self._readings[sent]
        if reading is not None:
            await reading.read(data, ends=False)
        return data

    async def end(self, *, sent: bool) -> None:
        """One direction is over: what is said about all of it is heard before its end goes on."""
        reading, self._readings[sent] = self._readings[sent], None
        if reading is not None:
            await reading.read(b"", ends=True)

    def close(self) -> None:
        """Both directions are over, or broke off."""
        for reading in self._readings.values():
            if reading is not None:
                reading.abandon()
                reading.close()


class _Way(Paced):
    """One direction of a WebSocket connection: a few bytes may be a message."""

    def __init__(self, steps: Callable[[bytes], Iterator[None]], give_up: Callable[[Exception], None]) -> None:
        super().__init__()
        self._steps_of, self._told = steps, give_up

    def steps(self, data: bytes) -> Iterator[None]:
        return self._steps_of(data)

    def _give_up(self, error: Exception) -> None:
        self._told(error)


class WebSocketStream(Stream):
    """The same for what is inside WebSocket frames: each message is a part by itself."""

    def __init__(self, watch: Watch, exchange: Exchange, extensions: str) -> None:
        self._watch = watch
        self._parts = {sent: exchange.stream(sent=sent) for sent in (True, False)}
        self._readings: dict[bool, Reading | None] = {True: None, False: None}
        sent, received = websocket.pair(extensions)
        self._frames: dict[bool, Frames | None] = {True: sent, False: received}

        self._ways = {
            way: _Way(partial(self._steps, sent=way), partial(self._give_up, sent=way)) for way in (True, False)
        }

    def feed(self, data: bytes, *, sent: bool) -> None:
        self._ways[sent].feed(data)

    @property
    def is_behind(self) -> bool:
        return any(way.is_behind for way in self._ways.values())

    async def catch_up(self) -> None:
        for way in self._ways.values():
            await way.catch_up()

    @property
    def waits(self) -> bool:
        return self._watch.waits

    async def end(self, *, sent: bool) -> None:
        """Its messages have ends of their own."""

    async def read(self, data: bytes, *, sent: bool) -> bytes:
        begun_s = time.process_time()
        for reading, piece in self._pieces(data, sent=sent):
            await reading.read(piece, ends=not piece)
            if time.process_time() - begun_s > TURN_S:
                await asyncio.sleep(0)
                begun_s = time.process_time()
        return data

    def close(self) -> None:
        super().close()
        for way in self._ways.values():
            way.leave()

    def _steps(self, data: bytes, *, sent: bool) -> Iterator[None]:
        for reading, piece in self._pieces(data, sent=sent):
            if piece:
                yield from reading.steps(piece)
            else:
                reading.close()
            yield

    def _give_up(self, error: Exception, *, sent: bool) -> None:
        self._frames[sent] = None
        self._watch.failed(NOT_INSPECTED, f"WebSocket: {error}")

    def _pieces(self, data: bytes, *, sent: bool) -> Iterator[tuple[Reading, bytes]]:
        """Pieces of messages, b"" at a message's end, with what is to read them."""
        frames = self._frames[sent]
        if frames is None:
            return
        try:
            for piece in frames.feed(data):
                reading = self._readings[sent]
                if piece and reading is None:
                    reading = self._readings[sent] = self._watch.open(self._parts[sent])
                elif not piece:
                    self._readings[sent] = None
                if reading is not None:
                    yield reading, piece
        except BadFrames as error:
            self._give_up(error, sent=sent)


def plain(watch: Watch, hand_over: HandOver) -> Stream:
    """A stream that no HTTP precedes. What reads it is loaded by who inspects: a tenth of a worker's start."""
    from mitmsec.engine import mail

    return mail.plain(watch, hand_over)
