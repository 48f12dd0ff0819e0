"""mitmproxy's HTTP layer, with admission before anything else and with connections that are made outside of it.

    Http ─┬─ Front (http1 | http2 | http3) ── client
          ├─ Back  (http1 | http2 | http3) ── origin, as handed over
          └─ Stream, one an exchange: `Exchange.begin` decides before mitmproxy sees the request

A request that is refused never reaches mitmproxy's own handling of it, so no hook that fails can forward it.
"""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestHeaders,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
)

from mitmsec.engine import http1, http2
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.fields import quicken
from mitmsec.engine.http1 import OnBroken, answer
from mitmsec.engine.pages import Page

EXCHANGE = "mitmsec"  # under which a mitmproxy flow carries its Exchange
NewExchange = Callable[[], Exchange]


class Http(HttpLayer):
    """`context.server` is connected already; what it agreed to by ALPN is what the client agreed to as well."""

    def __init__(
        self,
        context: Context,
        new_exchange: NewExchange,
        on_broken: OnBroken,
        on_broken_origin: Callable[[], None],
    ) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._new_exchange, self._on_broken, self._on_broken_origin = new_exchange, on_broken, on_broken_origin
        self._front: Layer | None = None
        self._back: Layer | None = None

    @property
    def back(self) -> Layer | None:
        """The side of the origin that was handed over."""
        return self._back

    @property
    def ahead(self) -> bool:
        """The client has sent more than may wait."""
        return isinstance(self._front, http1.Front) and self._front.ahead

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if not isinstance(event, events.Start):
            yield from super()._handle_event(event)
            return
        front = self._front = self._make_front(self.context.fork())
        back = self._back = self.make_back(self.context.fork())
        self.connections[self.context.client] = front
        self.connections[self.context.server] = back
        yield from super()._handle_event(event)
        yield from self.event_to_child(back, event)

    def _make_front(self, context: Context) -> Layer:
        if context.client.alpn == b"h2":
            return http2.Front(context, self._on_broken, self.streams)
        if context.client.alpn == b"h3":
            from mitmsec.engine.quic import http3  # which is there only where the policy wants it

            return http3.Front(context, self._on_broken)
        return http1.Front(context, self._on_broken, self._on_broken_origin)

    def make_back(self, context: Context) -> Layer:
        """The origin's side, joined to the client's for flow control."""
        if context.server.alpn == b"h3":
            from mitmsec.engine.quic import http3

            return http3.Back(context)
        if context.server.alpn != b"h2":
            return http1.Back(context, self._on_broken_origin)
        back = http2.Back(context)
        if isinstance(self._front, http2.Front):
            self._front.join(back)
        return back

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        stream = Stream(self.context.fork(), stream_id, self._new_exchange())
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> CommandGenerator[None]:
        """One that is there already, else one that is made outside (OpenConnection), TLS included."""
        for connection in tuple(self.connections) if reuse else ():
            if not event.connection_spec_matches(connection):
                continue
            if connection in self.waiting_for_establishment:
                self.waiting_for_establishment[connection].append(event)
                return
            if connection.state is ConnectionState.OPEN and not connection.error:
                yield from self._give(event, connection)
                return
        context = self.context.fork()
        context.server = Server(address=event.address)
        context.server.tls = event.tls
        further = _Further(context, self)
        self.connections[context.server] = further
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(further, events.Start())

    def _give(self, event: GetHttpConnection, connection: Connection) -> CommandGenerator[None]:
        stream = self.command_sources.pop(event)
        yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))


class _Further(Layer):
    """A connection to the origin beside the one that was handed over."""

    def __init__(self, context: Context, parent: Http) -> None:
        super().__init__(context)
        self._parent = parent
        self._child: Layer | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._child is not None:
            yield from self._child.handle_event(event)
        elif isinstance(event, events.Start):
            error = yield commands.OpenConnection(self.context.server)
            if not error:
                self._child = self._parent.make_back(self.context)
                yield from self._child.handle_event(event)
            yield RegisterHttpConnection(self.context.server, error)


class Stream(HttpStream):
    """One exchange."""

    def __init__(self, context: Context, stream_id: int, exchange: Exchange) -> None:
        super().__init__(context, stream_id)
        self.exchange = exchange

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        request = event.request
        quicken(request.headers)
        fields = request.headers.fields
        refusal = self.exchange.begin(
            request.data.method,
            request.data.path,
            request.http_version,
            _authorities(request),
            fields,
            has_body=not event.end_stream,
            led_to=b"" if request.is_http2 else request.data.authority,
        )
        if refusal is not None:
            yield from self._refuse(refusal, is_head=request.data.method == b"HEAD")
            return
        if _asks_for_h2c(fields):
            _without_h2c(request)
        flow = http.HTTPFlow(self.context.client, self.context.server)
        flow.metadata[EXCHANGE] = self.exchange
        if not event.end_stream and not self.exchange.held:
            request.stream = self.exchange.request_body
        event.replay_flow = flow
        yield from super().state_wait_for_request_headers(event)

    def _refuse(self, page: Page, *, is_head: bool) -> CommandGenerator[None]:
        """Answer at once; what the client still sends of this request is read and dropped."""
        response = answer(page)
        client = self.context.client
        yield SendHttp(ResponseHeaders(self.stream_id, response, end_stream=is_head), client)
        if not is_head:
            yield SendHttp(ResponseData(self.stream_id, page.body), client)
            yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        elif client.alpn != b"h2":
            yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
        self.exchange.finish()
        self.client_state = self.server_state = self.state_errored
        yield DropStream(self.stream_id)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> CommandGenerator[None]:
        quicken(event.response.headers)
        yield from super().state_wait_for_response_headers(event)

    def state_consume_request_body(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, RequestData) and not self.exchange.held:
            return  # a body after a head that announced none
        yield from super().state_consume_request_body(event)


def _authorities(request: http.Request) -> list[bytes]:
    found = [value for name, value in request.headers.fields if name.lower() == b"host"]
    if request.data.authority:
        found.append(request.data.authority)
    return found


def _asks_for_h2c(fields: tuple[tuple[bytes, bytes], ...]) -> bool:
    return any(name.lower() == b"upgrade" and b"h2c" in value.lower() for name, value in fields)


def _without_h2c(request: http.Request) -> None:
    """An upgrade to HTTP/2 in the clear would take the rest of the connection out of sight (RFC 9113 §3.1)."""
    request.headers.pop("upgrade", None)
    request.headers.pop("http2-settings", None)
    request.headers.pop("connection", None)
