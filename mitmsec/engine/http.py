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
    HTTPMode,
    HttpStream,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)  # fmt: skip
from mitmproxy.proxy.utils import ReceiveBuffer

from mitmsec.engine import http1, http2
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.fields import asks_for_h2c, authorities, quicken, without_h2c
from mitmsec.engine.further import Further
from mitmsec.engine.http1 import OnBroken, answer
from mitmsec.engine.pages import Page
from mitmsec.engine.pauses import Breath, Stopped, Wait, Whole
from mitmsec.engine.routed import Routed
from mitmsec.engine.watch import JOIN_BYTES, Blocked

BROKEN_OFF = "broken off"
LARGE_BYTES = 1 << 12  # a piece that inspectors may be asked about alone
IDLE_S = 0.2  # until what is withheld of a body goes on though nothing follows it
EXCHANGE = "mitmsec"  # under which a mitmproxy flow carries its Exchange
NewExchange = Callable[[], Exchange]
BodyEvent = events.Event
Onward = Callable[[BodyEvent], CommandGenerator[None]]
_ENDS: dict[type, type] = {RequestData: RequestEndOfMessage, ResponseData: ResponseEndOfMessage}


class Http(Routed):
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
            if isinstance(event, events.CommandCompleted):
                yield from self._settle()
            return
        front = self._front = self._make_front(self.context.fork())
        back = self._back = self.make_back(self.context.fork())
        self.connections[self.context.client] = front
        self.connections[self.context.server] = back
        yield from super()._handle_event(event)
        yield from self.event_to_child(back, event)

    def _settle(self) -> CommandGenerator[None]:
        """What a stream that paused has taken now is credit for its sender."""
        for layer in tuple(self.connections.values()):
            if isinstance(layer, http2.Front | http2.Back) and layer.owes:
                yield from layer.settle()

    @property
    def is_multiplexed(self) -> bool:
        """While one exchange waits, others can go on: its own credit is withheld, and the connection is read."""
        return not isinstance(self._front, http1.Front)

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
        further = Further(context, self.make_back)
        self.connections[context.server] = further
        self.waiting_for_establishment[context.server].append(event)
        yield from self.event_to_child(further, events.Start())

    def _give(self, event: GetHttpConnection, connection: Connection) -> CommandGenerator[None]:
        stream = self.command_sources.pop(event)
        yield from self.event_to_child(stream, GetHttpConnectionCompleted(event, (connection, None)))


class Stream(HttpStream):
    """One exchange."""

    def __init__(self, context: Context, stream_id: int, exchange: Exchange) -> None:
        super().__init__(context, stream_id)
        self.exchange = exchange
        self._wakes = self._is_fresh = False
        self._has_begun = False  # some of the answer has gone on

    def state_wait_for_request_headers(self, event: RequestHeaders) -> CommandGenerator[None]:
        request = event.request
        quicken(request.headers)
        fields = request.headers.fields
        refusal = self.exchange.begin(
            request.data.method,
            request.data.path,
            request.http_version,
            authorities(request),
            fields,
            has_body=not event.end_stream,
            led_to=b"" if request.is_http2 else request.data.authority,
        )
        if refusal is not None:
            yield from self._refuse(refusal, is_head=request.data.method == b"HEAD")
            return
        if asks_for_h2c(fields):
            without_h2c(request)
        if self.exchange.wants_plain:
            request.headers["accept-encoding"] = "identity"
        flow = http.HTTPFlow(self.context.client, self.context.server)
        flow.metadata[EXCHANGE] = self.exchange
        if not event.end_stream and not self.exchange.held:
            request.stream = True if self.exchange.asks(sent=True) else self.exchange.request_body
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
        self.exchange.answer_has_body = not event.end_stream
        yield from super().state_wait_for_response_headers(event)

    def start_response_stream(self) -> CommandGenerator[None]:
        self._has_begun = True
        yield from super().start_response_stream()

    def send_response(self, already_streamed: bool = False) -> CommandGenerator[None]:
        if already_streamed and http1.ends_unmarked(self.context.client, self._message(sent=False)):
            yield Whole()
        yield from super().send_response(already_streamed)
        self._has_begun = True

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        """Asked by mitmproxy behind each hook."""
        blocked = self.exchange.blocked
        if blocked is None:
            return (yield from super().check_killed(emit_error_hook))
        self.exchange.blocked = None
        yield from self._stop(blocked, sent=self.flow.response is None)
        return True

    # -- bodies --------------------------------------------------------------------------------------------------------
    def state_consume_request_body(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, RequestData) and not self.exchange.held:
            return  # a body after a head that announced none
        if isinstance(event, RequestEndOfMessage) and self._is_waited_for(sent=True):
            passed = yield from self._whole(bytes(self.request_body_buf), sent=True)
            if passed is None:
                return
            self.request_body_buf = passed
        elif isinstance(event, RequestTrailers) and (yield from self._are_bad(event)):
            return
        yield from super().state_consume_request_body(event)

    def state_stream_request_body(self, event: BodyEvent) -> CommandGenerator[None]:
        if isinstance(event, RequestTrailers):
            if (yield from self._are_bad(event)):
                return
        elif self.exchange.asks(sent=True):
            yield from self._stream(event, super().state_stream_request_body, sent=True)
            return
        yield from super().state_stream_request_body(event)

    def state_consume_response_body(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, ResponseEndOfMessage) and self._is_waited_for(sent=False):
            passed = yield from self._whole(bytes(self.response_body_buf), sent=False)
            if passed is None:
                return
            self.response_body_buf = passed
        yield from super().state_consume_response_body(event)

    def state_stream_response_body(self, event: events.Event) -> CommandGenerator[None]:
        if self.exchange.asks(sent=False) and not isinstance(event, ResponseTrailers):
            yield from self._stream(event, super().state_stream_response_body, sent=False)
        else:
            yield from super().state_stream_response_body(event)

    def _stream(self, event: BodyEvent, on: Onward, *, sent: bool) -> CommandGenerator[None]:
        """`event`, and what came with it, to the inspectors and `on`; in this order where they can stop it."""
        data, end = yield from self._joined(event)
        kind, kept = RequestData if sent else ResponseData, self.exchange.withheld(sent=sent)
        kept.add(data)
        if self.exchange.goes_first and (due := kept.due()):
            yield from on(kind(self.stream_id, due))
        if (yield from self._is_stopped_by(data, sent=sent, ends=end is not None)):
            return
        if due := kept.due() if end is None else kept.rest():
            yield from on(kind(self.stream_id, due))
        if end is not None:
            yield from on(end)
        elif kept and not self._wakes and self.exchange.is_impatient:
            self._wakes, self._is_fresh = True, False
            yield commands.RequestWakeup(IDLE_S)
        else:
            self._is_fresh = True

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup):
            yield from self._idle()
        else:
            yield from super()._handle_event(event)

    def _idle(self) -> CommandGenerator[None]:
        """What is withheld, and has been read, is perhaps what somebody waits for."""
        self._wakes = False
        if self._is_fresh:
            self._wakes, self._is_fresh = True, False
            yield commands.RequestWakeup(IDLE_S)
            return
        if self.client_state == self.state_stream_request_body and (data := self._idle_bytes(sent=True)):
            yield from super().state_stream_request_body(RequestData(self.stream_id, data))
        if self.server_state == self.state_stream_response_body and (data := self._idle_bytes(sent=False)):
            yield from super().state_stream_response_body(ResponseData(self.stream_id, data))

    def _idle_bytes(self, *, sent: bool) -> bytes:
        return self.exchange.withheld(sent=sent).idle() if self.exchange.asks(sent=sent) else b""

    def _is_waited_for(self, *, sent: bool) -> bool:
        """Somebody looks at a message that is there as a whole."""
        addons, is_held = self.exchange.addons, self.exchange.held if sent else self.exchange.answer_held
        return is_held or (addons is not None and addons.wants("request" if sent else "response"))

    def _whole(self, content: bytes, *, sent: bool) -> CommandGenerator[ReceiveBuffer | None]:
        """Addons and then inspectors look at a message, whose body is `content`: what of that goes on, or None."""
        addons, hook = self.exchange.addons, "request" if sent else "response"
        if addons is not None and addons.wants(hook):
            self._message(sent=sent).data.content = content
            blocked = yield Wait(addons.visit(hook, self.flow, self.exchange))
            self.exchange.blocked = self.exchange.blocked or blocked
            if (yield from self.check_killed(True)):
                return None
            content = self._message(sent=sent).data.content or b""
        if self.exchange.held if sent else self.exchange.answer_held:
            return (yield from self._passed(content, sent=sent))
        passed = ReceiveBuffer()  # type: ignore[no-untyped-call]
        passed += content
        return passed

    def _message(self, *, sent: bool) -> http.Message:
        message = self.flow.request if sent else self.flow.response
        assert message is not None
        return message

    def _passed(self, content: bytes, *, sent: bool) -> CommandGenerator[ReceiveBuffer | None]:
        """`content` is all of a held body: what of it goes on, masked where it has to be; None, if nothing may."""
        passed = ReceiveBuffer()  # type: ignore[no-untyped-call]
        if self.exchange.asks(sent=sent):
            kept = self.exchange.withheld(sent=sent)
            kept.add(content)
            if (yield from self._is_stopped_by(content, sent=sent, ends=True)):
                return None
            content = kept.rest()
        else:
            self.exchange.look(content, sent=sent, ends=True)
        passed += content
        return passed

    def _joined(self, event: BodyEvent) -> CommandGenerator[tuple[bytes, BodyEvent | None]]:
        """The body as far as it has come, and its end if that has: of many small pieces inspectors are asked once."""
        if not (isinstance(event, RequestData | ResponseData) and len(event.data) >= LARGE_BYTES):
            yield Breath()
        pieces, size_bytes, queue = [], 0, self._paused_event_queue
        while isinstance(event, RequestData | ResponseData):
            pieces.append(event.data)
            size_bytes += len(event.data)
            ends = bool(queue) and isinstance(queue[0], _ENDS[type(event)])
            goes_on = bool(queue) and type(queue[0]) is type(event) and size_bytes < JOIN_BYTES
            if not ends and not goes_on:
                return b"".join(pieces), None
            event = queue.popleft()
        return b"".join(pieces), event

    def _are_bad(self, event: RequestTrailers) -> CommandGenerator[bool]:
        try:
            self.exchange.trailers(event.trailers.fields, sent=True)
        except Blocked as blocked:
            yield from self._stop(blocked, sent=True)
            return True
        return False

    def _is_stopped_by(self, data: bytes, *, sent: bool, ends: bool) -> CommandGenerator[bool]:
        """Inspectors read it; whether that ended the exchange."""
        answer = self.exchange.look(data, sent=sent, ends=ends)
        blocked = answer if answer is None or isinstance(answer, Blocked) else (yield Wait(answer))
        if blocked is not None:
            yield from self._stop(blocked, sent=sent)
        return blocked is not None

    def _stop(self, blocked: Blocked, *, sent: bool) -> CommandGenerator[None]:
        """The origin never has a complete request. Nor has the client a complete answer, unless all of it is a page.

        `sent`: it is the request that must not go on.
        """
        if self.client_state == self.state_stream_request_body or self.flow.response is not None:
            cancel = RequestProtocolError(self.stream_id, BROKEN_OFF, ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)
        if not self._has_begun:
            page = self.exchange.page_for(blocked, sent=sent)
            yield from self._refuse(page, is_head=self.flow.request.data.method == b"HEAD")
            return
        self.exchange.stop()
        yield Stopped(blocked, is_alone=self.context.client.alpn not in (b"h2", b"h3"))
        self.exchange.finish()
        self.client_state = self.server_state = self.state_errored
        yield SendHttp(ResponseProtocolError(self.stream_id, BROKEN_OFF, ErrorCode.CANCEL), self.context.client)
        yield DropStream(self.stream_id)
