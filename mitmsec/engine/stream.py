"""Plaintext that is not HTTP, or is no longer: both directions, to the inspectors, piece by piece.

Where some of them have to be awaited, `read` stands for `feed`. They hear no end of what has none but the connection's,
when nothing is left that could wait for their verdict: that is said when such a stream opens, and `on_failure` decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import HandOver
from mitmsec.engine import websocket
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.watch import NOT_INSPECTED, Blocked, Reading, Watch
from mitmsec.engine.websocket import BadFrames, Frames

UNHEARD = "what is neither HTTP nor WebSocket has no end that waits for an inspector that has to be awaited"


class Stream:
    """Bytes in both directions of one connection. Methods raise Blocked, and so does the making."""

    def __init__(self, watch: Watch, sent: Part, received: Part, *, is_told: bool = False) -> None:
        """`is_told`: it has been recorded that inspectors do not hear its end."""
        self._watch = watch
        self._readings: dict[bool, Reading | None] = {True: watch.open(sent), False: watch.open(received)}
        if not is_told and any(reading is not None and reading.waits for reading in self._readings.values()):
            try:
                watch.failed(NOT_INSPECTED, UNHEARD)
            except Blocked:
                self.close()
                raise

    def feed(self, data: bytes, *, sent: bool) -> None:
        """The next bytes of one direction."""
        reading = self._readings[sent]
        if reading is not None:
            reading.feed(data)

    async def read(self, data: bytes, *, sent: bool) -> None:
        """The same, returning when all have looked."""
        reading = self._readings[sent]
        if reading is not None:
            await reading.read(data, ends=False)

    def close(self) -> None:
        """Both directions are over."""
        for reading in self._readings.values():
            if reading is not None:
                reading.abandon()
                reading.close()


class WebSocketStream(Stream):
    """The same for what is inside WebSocket frames: each message is a part by itself."""

    def __init__(self, watch: Watch, exchange: Exchange, extensions: str) -> None:
        self._watch = watch
        self._parts = {sent: exchange.stream(sent=sent) for sent in (True, False)}
        self._readings: dict[bool, Reading | None] = {True: None, False: None}
        sent, received = websocket.pair(extensions)
        self._frames: dict[bool, Frames | None] = {True: sent, False: received}

    def feed(self, data: bytes, *, sent: bool) -> None:
        for reading, piece in self._pieces(data, sent=sent):
            if piece:
                reading.feed(piece)
            else:
                reading.close()

    async def read(self, data: bytes, *, sent: bool) -> None:
        for reading, piece in self._pieces(data, sent=sent):
            await reading.read(piece, ends=not piece)

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
            self._frames[sent] = None
            self._watch.failed(NOT_INSPECTED, f"WebSocket: {error}")


def plain(watch: Watch, hand_over: HandOver, *, is_told: bool = False) -> Stream:
    """A stream that no HTTP precedes. `is_told` as of Stream."""
    sent, received = (
        Part(flow=hand_over.flow, kind=PartKind.STREAM, sent=way, host=hand_over.name) for way in (True, False)
    )
    return Stream(watch, sent, received, is_told=is_told)
