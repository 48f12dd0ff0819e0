"""The h2 library's connection with bounds: in what it announces, what it keeps, and what it does for nothing.

A PING or a reset costs its sender a few bytes and us a hundred times as much (CVE-2019-9512 and its kin, rapid reset).
`FrameMeter` reads frame heads before the library sees them. Frames that carry nothing are paid for from a purse:

    time ── PER_S ──┐
    DATA and heads ─┴─► purse, BURST at most ──► a frame that carries nothing: 1 · a reset: RESET_COST
    that we send                                 empty: flood, the connection ends
"""

from __future__ import annotations

import time
from typing import Any

import h2.events
import h2.exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection, SendH2Data

WINDOW_BYTES = 1 << 20
CONNECTION_WINDOW_BYTES = 6 << 20
HEADER_LIST_LIMIT_BYTES = 1 << 18
STREAMS_LIMIT = 128
JOIN_BYTES = 1 << 14  # small pieces that wait are joined up to this: each costs more than what is in it
BURST = 20_000.0
PER_S = 1_000.0
RESET_COST = 20
_INITIAL_WINDOW_BYTES = (1 << 16) - 1
_PREFACE_BYTES = 24
_HEAD_BYTES = 9
_DATA, _HEADERS, _RST_STREAM, _END_STREAM = 0x0, 0x1, 0x3, 0x1


class Flood(h2.exceptions.ProtocolError):
    """More frames that carry nothing than anybody needs."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM

    def __str__(self) -> str:
        return "too many frames that carry nothing"


class FrameMeter:
    """For what one peer sends. `now_s` is any clock that only goes forward."""

    __slots__ = ("_at_s", "_head", "_purse", "_skip_bytes")

    def __init__(self, *, has_preface: bool, now_s: float) -> None:
        self._skip_bytes = _PREFACE_BYTES if has_preface else 0  # until the next frame's head
        self._head = b""  # the beginning of a head
        self._purse = BURST
        self._at_s = now_s

    def earn(self, size_bytes: int) -> None:
        """A frame of this size goes to the peer, who may say something to it: acknowledge, open windows."""
        self._purse += 2 + (size_bytes >> 13)

    def earn_reset(self) -> None:
        """A request or a response begins, which the peer may break off."""
        self._purse += RESET_COST

    def allows(self, data: bytes, now_s: float) -> bool:
        """The next bytes; False where they are a flood."""
        purse = min(BURST, self._purse + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        if self._head:
            data, self._head = self._head + data, b""
        at, size_bytes = self._skip_bytes, len(data)
        while at + _HEAD_BYTES <= size_bytes:
            length = int.from_bytes(data[at : at + 3])
            kind = data[at + 3]
            if kind == _RST_STREAM:
                purse -= RESET_COST
            elif kind > _HEADERS or (kind == _DATA and not length and not data[at + 4] & _END_STREAM):
                purse -= 1
            at += _HEAD_BYTES + length
        if at < size_bytes:
            self._head, at = data[at:], size_bytes
        self._skip_bytes = at - size_bytes
        self._purse = purse
        return purse >= 0


class BoundedConnection(BufferedH2Connection):
    """One end of an HTTP/2 connection, as mitmproxy buffers it."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        settings = self.local_settings
        settings.initial_window_size = WINDOW_BYTES
        settings.max_concurrent_streams = STREAMS_LIMIT
        settings.max_header_list_size = self.decoder.max_header_list_size = HEADER_LIST_LIMIT_BYTES
        settings.acknowledge()  # at once: else the library goes on with what it was made with
        self.meter = FrameMeter(has_preface=not config.client_side, now_s=time.monotonic())
        self._is_opened = False

    def initiate_connection(self) -> None:
        H2Connection.initiate_connection(self)  # mitmproxy's opens the window as far as it goes
        self.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _INITIAL_WINDOW_BYTES)

    @property
    def held_bytes(self) -> int:
        """DATA of all streams that waits for the peer's credit."""
        return sum(map(self.kept_bytes, self.stream_buffers))

    def kept_bytes(self, stream_id: int) -> int:
        """DATA of one stream that waits for the peer's credit."""
        return sum(len(piece.data) for piece in self.stream_buffers.get(stream_id, ()))

    def send_headers(self, stream_id: int, *words: Any, **named: Any) -> None:
        self.meter.earn_reset()
        super().send_headers(stream_id, *words, **named)

    def send_data(  # type: ignore[override]
        self, stream_id: int, data: bytes, end_stream: bool = False, pad_length: None = None
    ) -> None:
        while len(data) > JOIN_BYTES:  # what waits is sent later as it is, and no frame is larger than that for sure
            self.send_data(stream_id, data[:JOIN_BYTES])
            data = data[JOIN_BYTES:]
        self.meter.earn(len(data))
        waiting = self.stream_buffers.get(stream_id)
        if waiting and len(waiting[-1].data) + len(data) <= JOIN_BYTES:
            waiting[-1] = SendH2Data(waiting[-1].data + data, end_stream)
        elif data and self.local_flow_control_window(stream_id) <= 0:  # negative: the peer took credit back (§6.9.2)
            self.stream_buffers[stream_id].append(SendH2Data(data, end_stream))
        else:
            super().send_data(stream_id, data, end_stream)

    def receive_data(self, data: bytes) -> list[h2.events.Event]:
        """Raises ProtocolError: Flood is one."""
        if not self.meter.allows(data, time.monotonic()):
            raise Flood
        found: list[h2.events.Event] = super().receive_data(data)
        if self._is_opened:
            self._is_opened = False
            super().connection_window_updated()
        for event in found:
            if isinstance(event, h2.events.StreamReset):
                self.stream_trailers.pop(event.stream_id, None)
        return found

    def connection_window_updated(self) -> None:
        """It looks at every stream that waits, so it is done once for all that has come."""
        self._is_opened = True

    def reset_stream(self, stream_id: int, error_code: int = 0) -> None:
        self.stream_trailers.pop(stream_id, None)
        super().reset_stream(stream_id, error_code)
