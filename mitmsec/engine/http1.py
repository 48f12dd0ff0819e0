"""mitmproxy's HTTP/1 with what a proxy that stands in for the origin needs: bounded heads, interim answers, trailers.

An origin that fails in the middle must look like a failing origin: the client's connection ends, it is never told "502"
by somebody who is not supposed to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h11
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server

HEAD_LIMIT_BYTES = 1 << 18
AHEAD_LIMIT_BYTES = 1 << 18  # of further requests, while one is being answered
CLIENT_CODES = frozenset({
    ErrorCode.GENERIC_CLIENT_ERROR, ErrorCode.REQUEST_VALIDATION_FAILED, ErrorCode.REQUEST_TOO_LARGE,
})  # fmt: skip


class _WithoutTrailers:
    """A body reader whose trailers are dropped, as RFC 9110 §6.5.1 lets an intermediary; mitmproxy would break off."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.read_eof = reader.read_eof

    def __call__(self, buffer: Any) -> Any:
        event = self._reader(buffer)
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) and event.headers else event


def _without_trailers(reader: Any) -> Any:
    return _WithoutTrailers(reader) if type(reader).__name__ == "ChunkedReader" else reader


class Front(Http1Server):
    """The client's side. `on_broken` is told when a client breaks the protocol, which ends the connection."""

    def __init__(self, context: Context, on_broken: Callable[[], None]) -> None:
        super().__init__(context)
        self._on_broken = on_broken
        self._parted = False  # the client sends nothing more, and waits for its answer

    @property
    def ahead(self) -> bool:
        """The client has sent more than may wait until the present exchange is over."""
        return len(self.buf) > AHEAD_LIMIT_BYTES and self.state == self.wait

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        while bytes(self.buf)[:2] == b"\r\n":  # RFC 9112 §2.2
            self.buf.maybe_extract_at_most(2)
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):  # it answers here only what it cannot parse
                self._on_broken()
            yield command
        if len(self.buf) > HEAD_LIMIT_BYTES and self.state == self.read_headers:
            self._on_broken()
            self.buf.maybe_extract_at_most(len(self.buf))
            yield commands.SendData(
                self.conn,
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            )
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        self.body_reader = _without_trailers(self.body_reader)
        yield from super().read_body(event)
        yield from _within_limit(self)

    def wait(self, event: events.Event) -> CommandGenerator[None]:
        """A client that has sent its end may still read (RFC 9112 §9.6)."""
        if isinstance(event, events.ConnectionClosed):
            self._parted = True
            return
        yield from super().wait(event)

    def mark_done(self, *, request: bool = False, response: bool = False) -> CommandGenerator[None]:
        yield from super().mark_done(request=request, response=response)
        if self._parted and self.state == self.read_headers:
            yield commands.CloseConnection(self.conn)
            self.state = self.done

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, ResponseProtocolError) and event.code in CLIENT_CODES:
            self._on_broken()
        elif isinstance(event, ResponseProtocolError):
            if self.conn.state & ConnectionState.CAN_WRITE:
                yield commands.CloseConnection(self.conn)
            return
        yield from super().send(event)


class Back(Http1Client):
    """The origin's side."""

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            self._drop_interim()
        yield from super().read_headers(event)
        if len(self.buf) > HEAD_LIMIT_BYTES and self.state == self.read_headers:
            yield from self._broken("the head of the response is too long")

    def _drop_interim(self) -> None:
        """1xx answers but 101: they precede the answer (RFC 9110 §15.2); mitmproxy would take one for it."""
        while self.request is not None and len(self.buf) > 12:
            head = bytes(self.buf)[:12]
            if not head.startswith(b"HTTP/1.") or head[9:10] != b"1" or head[9:12] == b"101":
                return
            if self.buf.maybe_extract_lines() is None:
                return

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        self.body_reader = _without_trailers(self.body_reader)
        yield from super().read_body(event)
        yield from _within_limit(self)

    def _broken(self, why: str) -> CommandGenerator[None]:
        yield commands.CloseConnection(self.conn)
        yield from _receive_error(self, why)


def _within_limit(side: Http1Connection) -> CommandGenerator[None]:
    """A chunk's head or trailers that never end are no body (RFC 9112 §7.1)."""
    if len(side.buf) > HEAD_LIMIT_BYTES and side.state == side.read_body:
        side.buf.maybe_extract_at_most(len(side.buf))
        yield commands.CloseConnection(side.conn)
        yield from _receive_error(side, "a chunk's head is too long")


def _receive_error(side: Http1Connection, why: str) -> CommandGenerator[None]:
    from mitmproxy.proxy.layers.http._base import ReceiveHttp

    if side.stream_id is not None:
        kind = side.ReceiveProtocolError
        yield ReceiveHttp(kind(side.stream_id, why, kind.code))
    side.state = side.done
