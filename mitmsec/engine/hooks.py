"""What mitmproxy's hooks become: exchanges and streams in our own words.

Called in line by `dialogue`. Whatever is raised here ends the flow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers import tcp
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from mitmsec.audit.event import FaultSeen, Outcome, Seen
from mitmsec.core.messages import HandOver
from mitmsec.core.model import Action
from mitmsec.engine import pages, stream
from mitmsec.engine.alt_svc import without_http3
from mitmsec.engine.exchange import Exchange
from mitmsec.engine.firstline import looks_like_http
from mitmsec.engine.http import EXCHANGE
from mitmsec.engine.pages import Page
from mitmsec.engine.pauses import Breath, Pauses, Stopped, Wait, Work, answer
from mitmsec.engine.seams import Recorder, Records
from mitmsec.engine.side import Ended
from mitmsec.engine.watch import Blocked, Watch, stopped_by

if TYPE_CHECKING:
    from mitmsec.engine.plain_addons import PlainAddons

Told = commands.StartHook | commands.RequestWakeup | Breath | Wait | Stopped


class Later:
    """Events that are recorded once what they are about has been sent: nobody's answer waits for its record."""

    def __init__(self, recorder: Records) -> None:
        self._recorder = recorder
        self._waiting: list[Seen] = []

    def record(self, seen: Seen) -> None:
        self._waiting.append(seen)

    def settle(self) -> None:
        """Record them now."""
        while self._waiting:
            self._recorder.record(self._waiting.pop(0))


class Hooks:
    """Those of one flow. `noted` is how the flow ends when it ends by itself, once something has gone wrong."""

    def __init__(self, hand_over: HandOver, watch: Watch, recorder: Recorder, pauses: Pauses) -> None:
        self._hand_over, self._watch, self._recorder, self._pauses = hand_over, watch, recorder, pauses
        self.requests = Later(recorder)
        self._open: set[Exchange] = set()
        self._stream: stream.Stream | None = None
        self.unfinished: bytes | None = None  # a first line that was relayed before it was known to be no request
        self.origin_ends = False  # the origin's end is being passed on
        self.noted: Ended | None = None

    @property
    def busy(self) -> bool:
        """Something is under way that a reset would break off."""
        return bool(self._open) or self._stream is not None

    @property
    def waits(self) -> bool:
        """For inspectors."""
        return self._pauses.any

    @property
    def unanswered(self) -> bool:
        """A request has no complete answer."""
        return bool(self._open)

    def begin(self, *, is_http: bool) -> None:
        """Raises Blocked."""
        if self._hand_over.decision.action is Action.BLOCK and not is_http:
            raise Blocked("what it speaks has no place for a page")
        if self._watch and not is_http:
            self._stream = stream.plain(self._watch, self._hand_over)

    def new_exchange(self) -> Exchange:
        """One more request."""
        exchange = Exchange(self._hand_over, self._watch, self.requests, on_finished=self._open.discard)
        self._open.add(exchange)
        return exchange

    def broken(self, page: Callable[[str], Page] = pages.unreadable, detail: str = "broken HTTP") -> Page:
        """The client broke HTTP, which ends the flow; what it may be told. What exactly it sent is not recorded."""
        self._fault("malformed_request", detail)
        self.noted = self.noted or Ended(Outcome.MALFORMED, "the client broke HTTP")
        return pages.told(page(self._hand_over.flow), self._hand_over.direction)

    def origin_broke(self) -> None:
        """The origin broke HTTP, which ends the connection to it, and the flow if that is the client's only one."""
        self.noted = self.noted or Ended(Outcome.MALFORMED, "the origin broke HTTP")

    def end(self) -> None:
        """The flow is over."""
        self._pauses.cancel()
        for exchange in tuple(self._open):
            exchange.finish()
        if self._stream is not None:
            with contextlib.suppress(Blocked):  # recorded; what it was about has been sent
                self._stream.close()
        self.requests.settle()

    def answer(self, command: Told) -> events.HookCompleted | None:
        """What a layer of mitmproxy's tells us of; the answer, where it waits for one that is there. Raises Blocked.

        Hooks that say nothing to us are passed over.
        """
        match command:
            case Breath():
                return answer(command)
            case Wait():
                self._pauses.begin(command, command.work)
            case Stopped(is_alone=is_alone, blocked=blocked):
                if is_alone:  # else the others go on; now the client must see a reset, and no end
                    self.noted = Ended(Outcome.BLOCKED, str(blocked), reset=True)
            case commands.RequestWakeup():
                self._pauses.wake(command)
            case commands.StartHook():
                known = _KNOWN.get(type(command))
                work = None if known is None else known(self, command)
                if work is None:
                    return answer(command) if command.blocking else None
                self._pauses.begin(command, work)
        return None

    # -- HTTP ----------------------------------------------------------------------------------------------------------
    def _on_request_head(self, hook: Any) -> Work | None:
        addons = self._watch.addons
        return self._visit(addons, hook.flow) if addons is not None and addons.wants("requestheaders") else None

    async def _visit(self, addons: PlainAddons, flow: Any) -> Blocked | None:
        exchange: Exchange = flow.metadata[EXCHANGE]
        exchange.blocked = await addons.visit("requestheaders", flow, exchange)
        return None  # what blocks it ends it alone

    def _on_response_head(self, hook: Any) -> Work | None:
        addons = self._watch.addons
        if addons is not None and addons.wants("responseheaders"):
            return self._visit_response(addons, hook)
        self._read_response_head(hook)
        return None

    async def _visit_response(self, addons: PlainAddons, hook: Any) -> Blocked | None:
        exchange: Exchange = hook.flow.metadata[EXCHANGE]
        exchange.blocked = await addons.visit("responseheaders", hook.flow, exchange)
        if exchange.blocked is None:
            self._read_response_head(hook)
        return None

    def _read_response_head(self, hook: Any) -> None:
        exchange: Exchange = hook.flow.metadata[EXCHANGE]
        try:
            self._response_head(exchange, hook.flow.response)
        except Blocked as blocked:
            exchange.blocked = blocked

    def _response_head(self, exchange: Exchange, response: Any) -> None:
        if not self._hand_over.http3 or self._hand_over.http3_led:
            but_led = self._hand_over.http3
            response.headers.fields = without_http3(response.headers.fields, but_led=but_led)
        exchange.response_begin(response.status_code, response.headers.fields, has_body=exchange.answer_has_body)
        if exchange.refused is None and not exchange.answer_held:
            response.stream = True if exchange.asks(sent=False) else exchange.response_body
        if response.status_code == 101 and self._watch:
            self._upgrade(exchange, response)

    def _upgrade(self, exchange: Exchange, response: Any) -> None:
        if response.headers.get("upgrade", "").lower() == "websocket":
            extensions = response.headers.get("sec-websocket-extensions", "")
            self._stream = stream.WebSocketStream(self._watch, exchange, extensions)
        else:
            self._stream = stream.Stream(self._watch, exchange.stream(sent=True), exchange.stream(sent=False))

    def _on_response(self, hook: Any) -> None:
        exchange: Exchange = hook.flow.metadata[EXCHANGE]
        if hook.flow.response.trailers:
            try:
                exchange.trailers(hook.flow.response.trailers.fields, sent=False)
            except Blocked as blocked:
                exchange.blocked = blocked
                return
        exchange.finish()

    def _on_error(self, hook: Any) -> None:
        if self.origin_ends and self.noted is None:
            self.noted = Ended(Outcome.ORIGIN_RESET, "the origin ended before its answer was complete")
        self._watch.settle()  # what came before the error goes on
        exchange: Exchange | None = hook.flow.metadata.get(EXCHANGE)
        if exchange is not None:
            exchange.finish()

    # -- what is not HTTP ----------------------------------------------------------------------------------------------
    def _on_tcp_message(self, hook: Any) -> Work | None:
        message = hook.flow.messages[-1]
        hook.flow.messages.clear()
        if self.unfinished is not None and message.from_client:
            self._finish_line(message.content)
        if self._stream is None:
            return None
        if self._stream.waits:
            return stopped_by(self._read(self._stream, message))
        self._stream.feed(message.content, sent=message.from_client)
        return stopped_by(self._stream.catch_up()) if self._stream.is_behind else None

    async def _read(self, reading: stream.Stream, message: Any) -> None:
        message.content = await reading.read(message.content, sent=message.from_client)

    def ending(self, by_client: bool) -> Work | None:
        """One side of what is not HTTP says nothing more: what is to be awaited before that goes on."""
        if self._stream is None or not (self._stream.waits or self._watch.prompt):
            return None
        return stopped_by(self._stream.end(sent=by_client))

    def _finish_line(self, data: bytes) -> None:
        """Names were not compared, so what is HTTP after all must not go on."""
        self.unfinished = (self.unfinished or b"") + data
        is_http = looks_like_http(self.unfinished)
        if is_http:
            self._fault("late_http", "inside TLS")
            raise Blocked("HTTP that began too late to be recognised")
        if is_http is False:
            self.unfinished = None

    def _fault(self, what: str, detail: str) -> None:
        self._recorder.record(FaultSeen(what=what, detail=detail, failed="closed", flow=self._hand_over.flow))


_KNOWN: dict[type[commands.StartHook], Callable[[Hooks, Any], Work | None]] = {
    HttpRequestHeadersHook: Hooks._on_request_head,
    HttpResponseHeadersHook: Hooks._on_response_head,
    HttpResponseHook: Hooks._on_response,
    HttpErrorHook: Hooks._on_error,
    tcp.TcpMessageHook: Hooks._on_tcp_message,
}
