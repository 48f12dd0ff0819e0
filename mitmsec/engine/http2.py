"""mitmproxy's HTTP/2 with flow control that reaches from one end to the other (RFC 9113 §5.2).

mitmproxy opens its windows as far as the protocol goes and keeps what the other side does not take yet. Here a stream's
window is WINDOW_BYTES, and it is opened again only as the other side takes what came:

    origin ── DATA ──► Back ──► Front ── DATA ──► client
           ◄─ WINDOW_UPDATE ─┘ when Front holds at most BACKLOG_BYTES of that stream ─┘
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import DataReceived, Event
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server, StreamState

from mitmsec.engine.http1 import CLIENT_CODES

WINDOW_BYTES = 1 << 20
BACKLOG_BYTES = 1 << 18
HEADER_LIST_LIMIT_BYTES = 1 << 18
STREAMS_LIMIT = 128


class _Flow(Protocol):
    """What both sides are to each other."""

    def backlog_bytes(self, stream_id: int) -> int: ...

    def settle(self) -> CommandGenerator[None]: ...


class _Controlled(Http2Connection):
    """Withholds credit for what the other side has not taken. `stream_id` is this connection's own."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)  # type: ignore[call-arg]
        settings = self.h2_conn.local_settings
        settings.initial_window_size = WINDOW_BYTES
        settings.max_concurrent_streams = STREAMS_LIMIT
        settings.max_header_list_size = HEADER_LIST_LIMIT_BYTES
        settings.acknowledge()
        self.others: list[_Controlled] = []
        self._owed_bytes: Counter[int] = Counter()

    def facing(self, stream_id: int) -> tuple[_Controlled, int] | None:
        """The connection that carries this stream on, and its number there."""
        raise NotImplementedError

    def backlog_bytes(self, stream_id: int) -> int:
        """What is kept of a stream until the peer takes it."""
        return sum(len(piece.data) for piece in self.h2_conn.stream_buffers.get(stream_id, ()))

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        if not isinstance(event, h2.events.DataReceived):
            return (yield from super().handle_h2_event(event))
        stream_id = event.stream_id or 0
        state = self.streams.get(stream_id)
        if state is StreamState.EXPECTING_HEADERS:
            return (yield from super().handle_h2_event(event))
        if state is StreamState.HEADERS_RECEIVED and event.data:
            yield ReceiveHttp(self.ReceiveData(stream_id, event.data))
        self._owed_bytes[stream_id] += event.flow_controlled_length or 0
        self._settle_stream(stream_id)
        return False

    def _settle_stream(self, stream_id: int) -> None:
        facing = self.facing(stream_id)
        if facing is not None and facing[0].backlog_bytes(facing[1]) > BACKLOG_BYTES:
            return
        with contextlib.suppress(h2.exceptions.ProtocolError, ValueError):
            self.h2_conn.acknowledge_received_data(self._owed_bytes.pop(stream_id), stream_id)

    def settle(self) -> CommandGenerator[None]:
        """Give the credit that has become due."""
        if not self._owed_bytes:
            return
        for stream_id in tuple(self._owed_bytes):
            self._settle_stream(stream_id)
        data = self.h2_conn.data_to_send()
        if data:
            yield commands.SendData(self.conn, data)

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        yield from super()._handle_event(event)
        if isinstance(event, DataReceived):
            for other in self.others:
                yield from other.settle()


class Front(_Controlled, Http2Server):
    """The client's side. `on_broken` is told when a client breaks the protocol, which ends the connection.

    That is also what becomes of CONNECT and of a Host that is not the authority: the h2 library accepts neither.
    """

    def __init__(self, context: Context, on_broken: Callable[[], None]) -> None:
        super().__init__(context)
        self._on_broken = on_broken

    def facing(self, stream_id: int) -> tuple[_Controlled, int] | None:
        for other in self.others:
            if isinstance(other, Back) and stream_id in other.our_stream_id:
                return other, other.our_stream_id[stream_id]
        return None

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> CommandGenerator[None]:
        self._on_broken()
        yield from super().protocol_error(message, error_code)

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and event.code not in CLIENT_CODES:
            event.code = ErrorCode.KILL if event.code.http_status_code() is not None else event.code
        yield from super()._handle_event(event)


class Back(_Controlled, Http2Client):
    """The origin's side."""

    def facing(self, stream_id: int) -> tuple[_Controlled, int] | None:
        theirs = self.their_stream_id.get(stream_id)
        return (self.others[0], theirs) if theirs is not None and self.others else None
