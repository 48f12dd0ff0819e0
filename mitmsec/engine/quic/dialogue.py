"""Both plaintexts of one flow of HTTP/3, driven through mitmproxy's layers: what `dialogue` is for what comes by TCP.

    front leg ── stream data, resets ──► HTTP/3 ──► Exchange, hooks ──► HTTP/3 ──► back leg
    (client)                                └► inspectors, record                  (origin)

Where a side does not take what the other sends, that gets no more credit. A client that goes on another path, or an
origin that ends, ends the flow: the program connects again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset
from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.quic import (
    CloseQuicConnection,
    QuicConnectionClosed,
    QuicStreamDataReceived,
    QuicStreamReset,
    QuicStreamStopSending,
    ResetQuicStream,
    SendQuicStreamData,
    StopSendingQuicStream,
)

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import HandOver
from mitmsec.engine import alerts
from mitmsec.engine.hooks import Hooks
from mitmsec.engine.http import Http
from mitmsec.engine.pauses import Breath, Pauses, Stopped, Wait, paused
from mitmsec.engine.quic.http3 import Back
from mitmsec.engine.quic.leg import QuicFailed, QuicLeg
from mitmsec.engine.seams import Recorder
from mitmsec.engine.side import Ended, ending
from mitmsec.engine.watch import Blocked, Watch

BACKLOG_BYTES = 1 << 18  # of one stream
HELD_BYTES = 1 << 20  # of all
READ_S = 0.05
FLUSH_S, FLUSH_STEP_S = 30.0, 0.05  # for a client to take what an origin said before it ended
NO_ERROR, INTERNAL_ERROR = 0x100, 0x102  # of HTTP/3 (RFC 9114 §8.1)


class QuicDialogue:
    """`ended` is done when the flow is to end; its result says how."""

    def __init__(
        self,
        hand_over: HandOver,
        context: Context,
        front: QuicLeg,
        back: QuicLeg,
        *,
        watch: Watch,
        recorder: Recorder,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hand_over, self._context, self._front, self._back = hand_over, context, front, back
        self._recorder, self._loop, self._watch = recorder, loop, watch
        self._hooks = Hooks(hand_over, watch, recorder, Pauses(loop, self._go_on, self._fault))
        self._events: deque[events.Event] = deque()
        self._legs: dict[Connection, QuicLeg] = {context.client: front, context.server: back}
        self._layer = Http(context, self._hooks.new_exchange, self._hooks.broken, self._hooks.origin_broke)
        self._busy = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._ending: Ended | None = None
        self.was_heard = False
        """The client has said something inside TLS: it took the certificate."""
        self.ended: asyncio.Future[Ended] = loop.create_future()

    def start(self) -> None:
        """Begin; both legs are the dialogue's from now on."""
        self._front.connection.withholds, self._back.connection.withholds = self._is_behind_back, self._is_behind_front
        self._front.connection.is_full = lambda: self._back.connection.held_bytes > HELD_BYTES
        self._back.connection.is_full = lambda: self._front.connection.held_bytes > HELD_BYTES
        self._dispatch(events.Start())
        for connection, leg in self._legs.items():
            if leg.failed is not None and self._ending is None:
                self._failed(connection, leg.failed)
            if self._ending is None:
                self._listen(connection, leg)

    def _listen(self, connection: Connection, leg: QuicLeg) -> None:
        leg.on_failed = lambda failed: self._failed(connection, failed)
        leg.listen(lambda event: self._heard(connection, event), self._turned)

    # -- from the legs -------------------------------------------------------------------------------------------------
    def _heard(self, connection: Connection, event: QuicEvent) -> None:
        match event:
            case StreamDataReceived(stream_id=stream_id, data=data, end_stream=is_end):
                self.was_heard = self.was_heard or connection is self._context.client
                self._dispatch(QuicStreamDataReceived(connection, stream_id, data, is_end))
            case StreamReset(stream_id=stream_id, error_code=code):
                self._dispatch(QuicStreamReset(connection, stream_id, code))
            case StopSendingReceived(stream_id=stream_id, error_code=code):
                self._dispatch(QuicStreamStopSending(connection, stream_id, code))
            case _:
                pass  # connection ids, answers to pings, datagrams: not ours to relay

    def _turned(self) -> None:
        """What came together has been read: what follows from it goes out, credit included."""
        for leg in (self._front, self._back):
            if not leg.closed and leg.failed is None:
                leg.flush()

    def _failed(self, connection: Connection, failed: QuicFailed) -> None:
        is_front = connection is self._context.client
        if self._ending is not None:
            return
        connection.state = ConnectionState.CLOSED
        self._hooks.origin_ends = not is_front and self._hooks.unanswered
        self._dispatch(QuicConnectionClosed(connection, INTERNAL_ERROR, None, ""))
        self._hooks.origin_ends = False
        if is_front or self._hooks.noted is not None:
            self.end(self._hooks.noted or _client_left(failed))
        else:
            self._origin_left(self._loop.time() + FLUSH_S)

    def _origin_left(self, until_s: float) -> None:
        """All of its answers are complete, but the client may not have them yet."""
        is_taken = self._front.failed is not None or not self._front.connection.held_bytes
        if is_taken or self._loop.time() > until_s:
            self.end(Ended(Outcome.COMPLETED))
        else:
            self._flush_timer = self._loop.call_later(FLUSH_STEP_S, self._origin_left, until_s)

    # -- through the layers --------------------------------------------------------------------------------------------
    def _dispatch(self, event: events.Event) -> None:
        self._events.append(event)
        if self._busy or self._ending is not None:
            return
        self._busy = True
        try:
            while self._events:
                for command in self._layer.handle_event(self._events.popleft()):
                    self._obey(command)
                    if self._is_over():
                        return
            if self._watch.unread:
                self._read()
        except Exception as error:
            self._fault(error)
        finally:
            self._busy = False
            self._hooks.requests.settle()

    def _go_on(self, answer: events.Event) -> None:
        self._dispatch(answer)
        self._turned()

    def _fault(self, error: Exception) -> None:
        self.end(ending(error, self._hand_over.flow, self._recorder))

    def _is_over(self) -> bool:
        return self._ending is not None

    def _read(self) -> None:
        """Inspectors' turn, before anything of this turn is sent where they can end the flow. Raises Blocked."""
        if self._watch.prompt:
            self._watch.settle()
        elif self._read_timer is None:
            self._read_timer = self._loop.call_later(READ_S, self._read_late)

    def _read_late(self) -> None:
        self._read_timer = None
        self._watch.settle()

    def _obey(self, command: commands.Command) -> None:
        match command:
            case SendQuicStreamData():
                leg = self._legs[command.connection].connection
                leg.say(command.stream_id, command.data, end_stream=command.end_stream)
            case ResetQuicStream():
                self._legs[command.connection].connection.break_off(command.stream_id, command.error_code)
            case StopSendingQuicStream():
                self._legs[command.connection].connection.decline(command.stream_id, command.error_code)
            case CloseQuicConnection():
                self._broken(command.connection, command.reason_phrase)
            case commands.StartHook() | commands.RequestWakeup() | Breath() | Wait() | Stopped():
                answer = self._hooks.answer(command)
                if answer is not None:
                    self._events.append(answer)
            case commands.OpenConnection():  # never asked for while the one that was handed over lives
                self._events.append(events.OpenConnectionCompleted(command, "the origin has ended"))
            case _:
                pass

    def _broken(self, connection: Connection, reason: str) -> None:
        """HTTP/3 was broken, which ends a connection (RFC 9114 §8)."""
        if connection is self._context.client:
            self._hooks.broken(detail="broken HTTP/3")
        else:
            self._hooks.origin_broke()
        noted = self._hooks.noted
        assert noted is not None
        self.end(Ended(noted.outcome, f"{noted.error}: {reason}" if reason else noted.error, reset=True))

    # -- credit --------------------------------------------------------------------------------------------------------
    def _is_behind_back(self, stream_id: int) -> bool:
        """Of what this stream of the client's brought, the origin has not taken enough."""
        if paused(self._layer.streams.get(stream_id)):
            return True
        back = self._layer.back
        ours = back.our_stream_id.get(stream_id) if isinstance(back, Back) else None
        return ours is not None and self._back.connection.backlog_bytes(ours) > BACKLOG_BYTES

    def _is_behind_front(self, stream_id: int) -> bool:
        back = self._layer.back
        theirs = back.their_stream_id.get(stream_id) if isinstance(back, Back) else None
        if theirs is None:
            return False
        is_paused = paused(self._layer.streams.get(theirs))
        return is_paused or self._front.connection.backlog_bytes(theirs) > BACKLOG_BYTES

    # -- the end -------------------------------------------------------------------------------------------------------
    def end(self, ended: Ended) -> None:
        """Close both connections; idempotent, the first reason counts."""
        if self._ending is not None:
            return
        try:
            self._watch.settle()
        except Blocked as blocked:
            ended = Ended(Outcome.BLOCKED, str(blocked), reset=True)
        if ended.outcome is Outcome.COMPLETED and not ended.error and self._hooks.unanswered:
            ended = Ended(ended.outcome, "the client ended before its answer was complete", reset=ended.reset)
        self._ending = ended
        for timer in (self._read_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        self._hooks.end()
        for leg in (self._front, self._back):
            leg.close(INTERNAL_ERROR if ended.reset else NO_ERROR)
        if not self.ended.done():
            self.ended.set_result(ended)


def _client_left(failed: QuicFailed) -> Ended:
    """Of TLS 1.3, an alert about our certificate comes when our handshake is done."""
    if failed.by_peer and alerts.is_distrust(failed.alert):
        return Ended(Outcome.CLIENT_REJECTED, f"TLS: {failed}")
    return Ended(Outcome.COMPLETED)
