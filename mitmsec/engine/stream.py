"""Plaintext that is not HTTP, or is no longer: both directions, to the inspectors, piece by piece."""

from __future__ import annotations

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import HandOver
from mitmsec.engine import websocket
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.watch import NOT_INSPECTED, Watch
from mitmsec.engine.websocket import BadFrames, Frames


class Stream:
    """Bytes in both directions of one connection. Methods raise Blocked."""

    def __init__(self, watch: Watch, sent: Part, received: Part) -> None:
        self._watch = watch
        self._readings = {True: watch.open(sent), False: watch.open(received)}

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
    """The same for what is inside WebSocket frames."""

    def __init__(self, watch: Watch, exchange: Exchange, extensions: str) -> None:
        super().__init__(watch, exchange.stream(sent=True), exchange.stream(sent=False))
        sent, received = websocket.pair(extensions)
        self._frames: dict[bool, Frames | None] = {True: sent, False: received}

    def feed(self, data: bytes, *, sent: bool) -> None:
        frames = self._frames[sent]
        if frames is None:
            return
        try:
            for piece in frames.feed(data):
                super().feed(piece, sent=sent)
        except BadFrames as error:
            self._frames[sent] = None
            self._watch.failed(NOT_INSPECTED, f"WebSocket: {error}")


def plain(watch: Watch, hand_over: HandOver) -> Stream:
    """A stream that no HTTP precedes."""
    sent, received = (
        Part(flow=hand_over.flow, kind=PartKind.STREAM, sent=way, host=hand_over.name) for way in (True, False)
    )
    return Stream(watch, sent, received)
