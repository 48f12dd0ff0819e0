"""Plaintext that is not HTTP, or is no longer: both directions, to the inspectors, piece by piece."""

from __future__ import annotations

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import HandOver
from mitmsec.engine import websocket
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.watch import NOT_INSPECTED, Reading, Watch
from mitmsec.engine.websocket import BadFrames, Frames


class Stream:
    """Bytes in both directions of one connection. Methods raise Blocked."""

    def __init__(self, watch: Watch, sent: Part, received: Part) -> None:
        self._watch = watch
        self._readings: dict[bool, Reading | None] = {True: watch.open(sent), False: watch.open(received)}

    def feed(self, data: bytes, *, sent: bool) -> None:
        """The next bytes of one direction."""
        reading = self._readings[sent]
        if reading is not None:
            reading.feed(data)

    def close(self) -> None:
        """Both directions are complete."""
        for reading in self._readings.values():
            if reading is not None:
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
        frames = self._frames[sent]
        if frames is None:
            return
        try:
            for piece in frames.feed(data):
                self._message(piece, sent=sent)
        except BadFrames as error:
            self._frames[sent] = None
            self._watch.failed(NOT_INSPECTED, f"WebSocket: {error}")

    def _message(self, piece: bytes, *, sent: bool) -> None:
        """The next of a message, b"" at its end."""
        reading = self._readings[sent]
        if piece:
            if reading is None:
                reading = self._readings[sent] = self._watch.open(self._parts[sent])
            super().feed(piece, sent=sent)
        elif reading is not None:
            self._readings[sent] = None
            reading.close()


def plain(watch: Watch, hand_over: HandOver) -> Stream:
    """A stream that no HTTP precedes."""
    sent, received = (
        Part(flow=hand_over.flow, kind=PartKind.STREAM, sent=way, host=hand_over.name) for way in (True, False)
    )
    return Stream(watch, sent, received)
