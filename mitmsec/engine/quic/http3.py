"""mitmproxy's HTTP/3 with bounds, and with pages of ours for what a client does wrong (RFC 9114).

Fields are compressed by the static table alone: with a dynamic one a byte may stand for a whole entry of 4 KiB, and
nobody bounds what that unfolds to. Frames are held until they are whole, but for DATA: up to FRAME_LIMIT_BYTES.
Interim answers (1xx) are not passed on. What mitmproxy would keep for as long as the connection lives is forgotten with
its streams.
"""

from __future__ import annotations

from aioquic.h3.connection import ErrorCode as Http3Error
from aioquic.h3.connection import H3Stream, HeadersState, Setting
from aioquic.h3.events import H3Event, HeadersReceived
from mitmproxy.connection import Connection
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import Event
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http3 import Http3Client, Http3Server
from mitmproxy.proxy.layers.http._http_h3 import LayeredH3Connection
from mitmproxy.proxy.layers.quic import QuicStreamEvent, QuicStreamReset, QuicStreamStopSending

from mitmsec.engine.http1 import CLIENT_CODES, OnBroken, answer
from mitmsec.engine.pages import Page

FRAME_LIMIT_BYTES = 1 << 16
REMEMBERED_STREAMS = 1024  # most of which are over


class _Bounded(LayeredH3Connection):
    """aioquic's constructor sets both of these, and uses them."""

    @property
    def _max_table_capacity(self) -> int:
        return 0

    @_max_table_capacity.setter
    def _max_table_capacity(self, value: int) -> None:
        pass

    @property
    def _blocked_streams(self) -> int:
        return 0

    @_blocked_streams.setter
    def _blocked_streams(self, value: int) -> None:
        pass

    def _get_local_settings(self) -> dict[int, int]:
        """No CONNECT for other protocols (RFC 9220): nobody here would read those."""
        return {
            Setting.QPACK_MAX_TABLE_CAPACITY: 0,
            Setting.QPACK_BLOCKED_STREAMS: 0,
            Setting.MAX_FIELD_SECTION_SIZE: FRAME_LIMIT_BYTES,
        }

    def handle_stream_event(self, event: QuicStreamEvent) -> list[H3Event]:
        found = super().handle_stream_event(event)
        stream = self._stream.get(event.stream_id)
        if stream is not None and len(stream.buffer) > FRAME_LIMIT_BYTES and not self._is_done:
            self.close_connection(Http3Error.H3_EXCESSIVE_LOAD, reason_phrase="a frame is too long")
            return []
        return found

    def _handle_request_or_push_frame(
        self, frame_type: int, frame_data: bytes | None, stream: H3Stream, stream_ended: bool
    ) -> list[H3Event]:
        """An interim answer (RFC 9114 §4.1) is followed by the real one. aioquic would take that for trailers."""
        is_first = stream.headers_recv_state is HeadersState.INITIAL
        found = super()._handle_request_or_push_frame(frame_type, frame_data, stream, stream_ended)
        is_interim = self._is_client and is_first and not stream_ended and any(map(_is_interim, found))
        if not is_interim:
            return found
        stream.headers_recv_state, stream.expected_content_length = HeadersState.INITIAL, None
        return []

    def _check_content_length(self, stream: H3Stream) -> None:
        """An answer without a body may tell how long that would have been: to HEAD, or 304 (RFC 9110 §8.6)."""
        if not self._is_client or stream.content_length:
            super()._check_content_length(stream)

    def forget(self) -> frozenset[int]:
        """Streams that are over in both directions; which those were."""
        over = frozenset(
            stream.stream_id
            for stream in self._stream.values()
            if stream.stream_type is None and stream.ended and stream.headers_send_state is HeadersState.AFTER_TRAILERS
        )
        for stream_id in over:
            del self._stream[stream_id]
        self._closed_streams -= over
        return over

    @property
    def remembered(self) -> int:
        return len(self._stream)


def _is_interim(event: H3Event) -> bool:
    if not isinstance(event, HeadersReceived):
        return False
    return any(name == b":status" and value.startswith(b"1") for name, value in event.headers)


def _bounded(conn: Connection, *, is_client: bool) -> _Bounded:
    return _Bounded(conn, is_client=is_client)


class Front(Http3Server):
    """The client's side. `on_broken` is told when a client breaks the protocol."""

    h3_conn: _Bounded

    def __init__(self, context: Context, on_broken: OnBroken) -> None:
        super().__init__(context)
        self.h3_conn = _bounded(self.conn, is_client=False)
        self._on_broken = on_broken

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and event.code.http_status_code() is not None:
            page = self._on_broken() if event.code in CLIENT_CODES else None
            if page is not None and not self.h3_conn.has_sent_headers(event.stream_id):
                yield from self._show(event.stream_id, page)
                return
            event.code = ErrorCode.KILL  # a reset, where mitmproxy would show a page of its own
        yield from super()._handle_event(event)
        if self.h3_conn.remembered > REMEMBERED_STREAMS:
            self.h3_conn.forget()

    def _show(self, stream_id: int, page: Page) -> CommandGenerator[None]:
        for event in (
            ResponseHeaders(stream_id, answer(page)),
            ResponseData(stream_id, page.body),
            ResponseEndOfMessage(stream_id),
        ):
            yield from super()._handle_event(event)


class Back(Http3Client):
    """The origin's side."""

    h3_conn: _Bounded

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h3_conn = _bounded(self.conn, is_client=True)

    def _handle_event(self, event: Event) -> CommandGenerator[None]:
        is_known = not isinstance(event, HttpEvent) or event.stream_id in self.our_stream_id
        if not is_known and not isinstance(event, RequestHeaders):
            return  # it never reached the origin, or is over
        if isinstance(event, QuicStreamReset | QuicStreamStopSending) and self._is_forgotten(event.stream_id):
            return
        yield from super()._handle_event(event)
        if self.h3_conn.remembered > REMEMBERED_STREAMS:
            for ours in self.h3_conn.forget():
                theirs = self.their_stream_id.pop(ours, None)
                if theirs is not None:
                    del self.our_stream_id[theirs]

    def _is_forgotten(self, stream_id: int) -> bool:
        """Those of requests are every fourth (RFC 9000 §2.1, RFC 9114 §6.1)."""
        return stream_id % 4 == 0 and stream_id not in self.their_stream_id
