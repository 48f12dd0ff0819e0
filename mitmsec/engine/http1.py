"""mitmproxy's HTTP/1 with what a proxy that stands in for the origin needs: bounded heads, interim answers, trailers.

An origin that fails in the middle must look like a failing origin: the client's connection ends, it is never told "502"
by somebody who is not supposed to be there. What the client itself did wrong is answered with a page of ours.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import h11
from mitmproxy import http
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.net.http.http1 import assemble_response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestTrailers,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server

from mitmsec.engine import pages
from mitmsec.engine.fields import quicken
from mitmsec.engine.pages import Page

HEAD_LIMIT_BYTES = 1 << 18
AHEAD_LIMIT_BYTES = 1 << 18  # of further requests, while one is being answered
CLIENT_CODES = frozenset({
    ErrorCode.GENERIC_CLIENT_ERROR, ErrorCode.REQUEST_VALIDATION_FAILED, ErrorCode.REQUEST_TOO_LARGE,
})  # fmt: skip
OnBroken = Callable[..., Page]
"""Told that a client broke the protocol; what the client may be told."""

_EMPTY_LINES = re.compile(rb"(?:\r?\n)+")
_INTERIM = re.compile(rb"HTTP/1\.. 1(?!01)..", re.DOTALL)  # 1xx but 101
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LAST_CHUNK = b"0\r\n\r\n"
_NOT_IN_TRAILERS = frozenset({  # a lenient reader that merges them would frame or route by them (RFC 9110 §6.5.1)
    b"connection", b"content-encoding", b"content-length", b"content-range", b"content-type", b"expect", b"host",
    b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip


def answer(page: Page) -> http.Response:
    """`page` as a response; HTTP/1 connections end with it."""
    return http.Response.make(
        page.status,
        page.body,
        {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "connection": "close"},
    )


def ends_unmarked(client: Client, response: http.Message) -> bool:
    """Nothing follows the body of this answer: its length, or the connection's end, says where it ends."""
    return client.alpn not in (b"h2", b"h3") and "transfer-encoding" not in response.headers


class _Trailers:
    """A body reader which keeps the trailers, which mitmproxy would take for a fault of its own."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.read_eof = reader.read_eof
        self.fields: list[tuple[bytes, bytes]] = []

    def __call__(self, buffer: Any) -> Any:
        event = self._reader(buffer)
        if not isinstance(event, h11.EndOfMessage) or not event.headers:
            return event
        self.fields = [
            (bytes(name), bytes(value)) for name, value in event.headers.raw_items() if _may_trail(bytes(name))
        ]
        return h11.EndOfMessage()


def _may_trail(name: bytes) -> bool:
    return name.lower() not in _NOT_IN_TRAILERS


class _Side(Http1Connection):
    """What both sides share: trailers pass (RFC 9112 §7.1.2), and what announces a chunk is bounded."""

    _trailers: http.Headers | None = None  # to be sent with the end of the message
    _request: http.Request | None = None
    _response: http.Response | None = None
    _receive_trailers: type[RequestTrailers | ResponseTrailers]

    @property
    def request(self) -> http.Request | None:
        """Whose fields are asked for as soon as it is set."""
        return self._request

    @request.setter
    def request(self, request: http.Request | None) -> None:
        self._request = request
        if request is not None:
            quicken(request.headers)

    @property
    def response(self) -> http.Response | None:
        """Likewise."""
        return self._response

    @response.setter
    def response(self, response: http.Response | None) -> None:
        self._response = response
        if response is not None:
            quicken(response.headers)

    def read_body(self, event: events.Event) -> CommandGenerator[None]:
        if type(self.body_reader).__name__ == "ChunkedReader":
            self.body_reader = _Trailers(self.body_reader)  # type: ignore[assignment]
        read = super().read_body(event)
        if isinstance(self.body_reader, _Trailers):
            read = self._with_trailers(self.body_reader, read)
        yield from self._noticing(event, read)
        if len(self.buf) > HEAD_LIMIT_BYTES and self.state == self.read_body:  # RFC 9112 §7.1
            self.buf.maybe_extract_at_most(len(self.buf))
            self.broke()
            yield commands.CloseConnection(self.conn)
            yield from self.fail("a chunk's head is too long")

    @abstractmethod
    def broke(self) -> None:
        """What came is no HTTP: this is why the connection ends."""

    @property
    @abstractmethod
    def _is_whole(self) -> bool:
        """The message that is read has come to its end."""

    def _noticing(self, event: events.Event, read: CommandGenerator[None]) -> CommandGenerator[None]:
        """mitmproxy closes in the middle of a message where its bytes, not its end, are wrong."""
        for command in read:
            is_cut = isinstance(command, commands.CloseConnection) and isinstance(event, events.DataReceived)
            if is_cut and self.request is not None and not self._is_whole:
                self.broke()
            yield command

    def _with_trailers(self, reader: _Trailers, read: CommandGenerator[None]) -> CommandGenerator[None]:
        for command in read:
            if (
                reader.fields
                and isinstance(command, ReceiveHttp)
                and isinstance(command.event, self.ReceiveEndOfMessage)
            ):
                fields, reader.fields = reader.fields, []  # a pipelined request may follow in here
                yield ReceiveHttp(self._receive_trailers(command.event.stream_id, http.Headers(fields)))
            yield command

    def fail(self, why: str) -> CommandGenerator[None]:
        """Whoever waits for the message hears that it broke off."""
        if self.stream_id is not None:
            kind = self.ReceiveProtocolError
            yield ReceiveHttp(kind(self.stream_id, why, kind.code))
        self.state = self.done

    def send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, RequestTrailers | ResponseTrailers):
            self._trailers = event.trailers
            return
        if self._trailers is None:
            yield from super().send(event)
            return
        last_chunk, self._trailers = b"0\r\n%b\r\n" % bytes(self._trailers), None
        for command in super().send(event):
            if isinstance(command, commands.SendData) and command.data == _LAST_CHUNK:
                command.data = last_chunk
            yield command

    def came(self, event: events.Event) -> bytes:
        """The buffer, where it may begin with something new: it is not copied for each piece that dribbles in."""
        size_bytes = len(event.data) if isinstance(event, events.DataReceived) else 0
        return bytes(self.buf) if not size_bytes or len(self.buf) - size_bytes < len("HTTP/1.1 100") else b""


class Front(_Side, Http1Server):
    """The client's side. `on_broken` is told when a client breaks the protocol, which ends the connection;
    `on_broken_origin` when the answer is one that mitmproxy does not pass on.
    """

    _receive_trailers = RequestTrailers

    def __init__(self, context: Context, on_broken: OnBroken, on_broken_origin: Callable[[], None]) -> None:
        super().__init__(context)
        self._on_broken, self._on_broken_origin = on_broken, on_broken_origin
        self._parted = False  # the client sends nothing more, and waits for its answer

    @property
    def _is_whole(self) -> bool:
        return self.request_done

    def broke(self) -> None:
        self._on_broken()

    @property
    def ahead(self) -> bool:
        """The client has sent more than may wait until the present exchange is over."""
        return len(self.buf) > AHEAD_LIMIT_BYTES and self.state == self.wait

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        empty = _EMPTY_LINES.match(self.came(event))
        if empty is not None:  # RFC 9112 §2.2
            self.buf.maybe_extract_at_most(empty.end())
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):  # it answers here only what it cannot parse
                command.data = _last_words(self._on_broken())
            yield command
        if len(self.buf) > HEAD_LIMIT_BYTES and self.state == self.read_headers:
            self.buf.maybe_extract_at_most(len(self.buf))
            yield commands.SendData(self.conn, _last_words(self._on_broken(pages.too_large)))
            yield commands.CloseConnection(self.conn)
            self.state = self.done

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
        if not isinstance(event, ResponseProtocolError):
            yield from super().send(event)
        elif self.conn.state & ConnectionState.CAN_WRITE:
            if event.code is ErrorCode.RESPONSE_VALIDATION_FAILED:
                self._on_broken_origin()
            if event.code in CLIENT_CODES:
                page = self._on_broken()
                if not self.response:
                    yield commands.SendData(self.conn, _last_words(page))
            yield commands.CloseConnection(self.conn)


class Back(_Side, Http1Client):
    """The origin's side."""

    _receive_trailers = ResponseTrailers
    _in_interim = False  # the buffer begins with an interim answer that is not complete

    def __init__(self, context: Context, on_broken: Callable[[], None]) -> None:
        """`on_broken` is told when an origin breaks the protocol."""
        super().__init__(context)
        self._on_broken = on_broken

    @property
    def _is_whole(self) -> bool:
        return self.response_done

    def broke(self) -> None:
        self._on_broken()

    def read_headers(self, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if self.request is not None and isinstance(event, events.DataReceived):
            self._drop_interim(bytes(self.buf) if self._in_interim else self.came(event))
        yield from self._noticing(event, super().read_headers(event))
        if len(self.buf) > HEAD_LIMIT_BYTES and self.state == self.read_headers:
            self.broke()
            yield commands.CloseConnection(self.conn)
            yield from self.fail("the head of the response is too long")

    def _drop_interim(self, data: bytes) -> None:
        """1xx answers but 101: they precede the answer (RFC 9110 §15.2); mitmproxy would take one for it."""
        at = 0
        self._in_interim = False
        while _INTERIM.match(data, at):
            blank = _BLANK_LINE.search(data, at)
            if blank is None:
                self._in_interim = True
                break
            at = blank.end()
        if at:
            self.buf.maybe_extract_at_most(at)


def _last_words(page: Page) -> bytes:
    raw: bytes = assemble_response(answer(page))  # type: ignore[no-untyped-call]
    return raw
