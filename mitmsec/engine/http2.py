"""mitmproxy's HTTP/2 with flow control that reaches from one end to the other (RFC 9113 §5.2).

mitmproxy opens its windows as far as the protocol goes and keeps what the other side does not take yet. Here windows
have a size (`frames`), and credit is given again only as the other side takes what came:

    origin ── DATA ──► Back ──► Front ── DATA ──► client
           ◄─ WINDOW_UPDATE ─┘ when Front holds at most BACKLOG_BYTES of that stream; nothing of it, while it holds
                               HELD_BYTES of all streams ─┘

So one side holds CONNECTION_WINDOW_BYTES + HELD_BYTES at most. A stream that is taken goes on beside those that are
not, until these have filled the connection's window.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping

import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import DataReceived, Event
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Connection, Http2Server, StreamState

from mitmsec.engine.frames import BoundedConnection, Flood
from mitmsec.engine.http1 import CLIENT_CODES, OnBroken, answer
from mitmsec.engine.pages import Page
from mitmsec.engine.pauses import paused

BACKLOG_BYTES = 1 << 18
HELD_BYTES = 1 << 20
REMEMBERED_STREAMS = 1024  # most of which are over


class _Controlled(Http2Connection, ABC):
    """Withholds credit for what the other side has not taken. `stream_id` is this connection's own."""

    h2_conn: BoundedConnection

    def __init__(self, context: Context) -> None:
        super().__init__(context)  # type: ignore[call-arg]
        self.h2_conn = BoundedConnection(self.h2_conf)
        self.others: list[_Controlled] = []  # that carry the streams on
        self._owed_bytes: Counter[int] = Counter()

    @abstractmethod
    def has_room(self, stream_id: int, limit_bytes: int) -> bool:
        """Whether the other side keeps at most `limit_bytes` of this stream."""

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        if isinstance(event, Flood):
            yield from self.protocol_error(str(event), ErrorCodes.ENHANCE_YOUR_CALM)
            return True
        if not isinstance(event, h2.events.DataReceived):
            return (yield from super().handle_h2_event(event))
        stream_id = event.stream_id or 0
        state = self.streams.get(stream_id)
        if state is StreamState.EXPECTING_HEADERS:
            return (yield from super().handle_h2_event(event))
        if state is StreamState.HEADERS_RECEIVED and event.data:
            yield ReceiveHttp(self.ReceiveData(stream_id, event.data))
        self._owed_bytes[stream_id] += event.flow_controlled_length or 0
        return False

    @property
    def owes(self) -> bool:
        """Credit is withheld."""
        return bool(self._owed_bytes)

    def settle(self) -> CommandGenerator[None]:
        """Give the credit that has become due."""
        held_bytes = sum(other.h2_conn.held_bytes for other in self.others)
        limit_bytes = BACKLOG_BYTES if held_bytes < HELD_BYTES else 0
        for stream_id in tuple(self._owed_bytes):
            if self.has_room(stream_id, limit_bytes):
                with contextlib.suppress(h2.exceptions.ProtocolError, ValueError):
                    self.h2_conn.acknowledge_received_data(self._owed_bytes.pop(stream_id), stream_id)
        data = self.h2_conn.data_to_send()
        if data:
            yield commands.SendData(self.conn, data)

    def forget(self) -> None:
        """Streams that are over: mitmproxy would keep them as long as the connection."""
        for stream_id in tuple(self.streams):
            if self.is_closed(stream_id):
                del self.streams[stream_id]

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        yield from super()._handle_event(event)
        if self._owed_bytes:
            yield from self.settle()
        if isinstance(event, DataReceived):
            for other in self.others:
                if other._owed_bytes:
                    yield from other.settle()
            if len(self.streams) > REMEMBERED_STREAMS:
                self.forget()


class Front(_Controlled, Http2Server):
    """The client's side. `on_broken` is told when a client breaks the protocol, which ends the connection.

    That is also what becomes of CONNECT and of a Host that is not the authority: the h2 library accepts neither.
    `open_streams` are those whose request goes on, or waits for a connection or for its inspection. What comes for one
    that is paused waits with it.
    """

    def __init__(self, context: Context, on_broken: OnBroken, open_streams: Mapping[int, Layer]) -> None:
        super().__init__(context)
        self._on_broken, self._open_streams = on_broken, open_streams

    def join(self, back: Back) -> None:
        """`back` carries streams on from now on."""
        self.others = [other for other in self.others if other.conn.state is not ConnectionState.CLOSED]
        self.others.append(back)
        back.others.append(self)

    def is_paused(self, stream_id: int) -> bool:
        """Inspectors are being waited for, or whatever else the stream needs."""
        return paused(self._open_streams.get(stream_id))

    def has_room(self, stream_id: int, limit_bytes: int) -> bool:
        if self.is_paused(stream_id):
            return False
        for back in self.others:
            kept_bytes = back.kept_bytes(stream_id) if isinstance(back, Back) else None
            if kept_bytes is not None:
                return kept_bytes <= limit_bytes
        return stream_id not in self._open_streams

    def protocol_error(self, message: str, error_code: int = ErrorCodes.PROTOCOL_ERROR) -> CommandGenerator[None]:
        self._on_broken(detail="a flood of HTTP/2 frames" if error_code == Flood.error_code else "broken HTTP")
        yield from super().protocol_error(message, error_code)

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and event.code.http_status_code() is not None:
            page = self._on_broken() if event.code in CLIENT_CODES else None
            if page is not None and self._can_begin(event.stream_id):
                yield from self._show(event.stream_id, page)
                return
            event.code = ErrorCode.KILL  # a reset, where mitmproxy would show a page of its own
        yield from super()._handle_event(event)

    def _can_begin(self, stream_id: int) -> bool:
        return self.is_open_for_us(stream_id) and not self.h2_conn.streams[stream_id].state_machine.headers_sent

    def _show(self, stream_id: int, page: Page) -> CommandGenerator[None]:
        for event in (
            ResponseHeaders(stream_id, answer(page)),
            ResponseData(stream_id, page.body),
            ResponseEndOfMessage(stream_id),
        ):
            yield from super()._handle_event(event)


class Back(_Controlled, Http2Client):
    """The origin's side."""

    def has_room(self, stream_id: int, limit_bytes: int) -> bool:
        theirs = self.their_stream_id.get(stream_id)
        return theirs is None or all(
            front.h2_conn.kept_bytes(theirs) <= limit_bytes
            and not (isinstance(front, Front) and front.is_paused(theirs))
            for front in self.others
        )

    def kept_bytes(self, stream_id: int) -> int | None:
        """What is kept of the client's stream `stream_id` until the origin takes it; None where it is not here."""
        if stream_id in self.stream_queue:  # the origin does not want more streams at once
            return sum(len(event.data) for event in self.stream_queue[stream_id] if isinstance(event, RequestData))
        ours = self.our_stream_id.get(stream_id)
        return None if ours is None else self.h2_conn.kept_bytes(ours)

    def forget(self) -> None:
        super().forget()
        self.their_stream_id = {ours: theirs for ours, theirs in self.their_stream_id.items() if ours in self.streams}
        self.our_stream_id = {theirs: ours for ours, theirs in self.their_stream_id.items()}

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent) and not isinstance(event, RequestHeaders):
            if event.stream_id in self.stream_queue:
                if isinstance(event, RequestProtocolError):
                    del self.stream_queue[event.stream_id]
                    return
            elif event.stream_id not in self.our_stream_id:
                return  # it is over, and its number here may be another's by now
        yield from super()._handle_event(event)
        if len(self.their_stream_id) > REMEMBERED_STREAMS:
            self.forget()
