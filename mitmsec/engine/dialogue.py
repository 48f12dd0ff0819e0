"""Both plaintexts of one flow, driven through mitmproxy's layers.

    front leg ── bytes ──► TLS ── DataReceived ──► layers ──► SendData ── TLS ──► back leg
    (client)  ◄───────────────────────────────────  hooks ◄──────────────────────  (origin)
                                                     └► Exchange | Stream ─► inspectors, record

mitmproxy's own driver makes a task for each hook and swallows what a hook raises. This one calls hooks in line, which
is most of the speed, and ends the flow on whatever is raised anywhere, which is the safety: a flow that cannot be
inspected or understood never just goes on. All that a layer sends in one turn leaves as one record in one call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context

from mitmsec.audit.event import FaultSeen, Outcome
from mitmsec.core.messages import HandOver
from mitmsec.engine import alerts
from mitmsec.engine.firstline import looks_like_http
from mitmsec.engine.hooks import Hooks, Told
from mitmsec.engine.http import Http
from mitmsec.engine.leg import CHUNK_BYTES
from mitmsec.engine.openssl import TlsFailed
from mitmsec.engine.pauses import Pauses, Whole
from mitmsec.engine.relay import Relay
from mitmsec.engine.seams import Recorder
from mitmsec.engine.side import Ended, Side, ending
from mitmsec.engine.watch import Blocked, Watch

IDLE_WITHOUT_ORIGIN_S = 60.0
SNIFF_S = 0.3
QUEUE_LIMIT_BYTES = 8 << 20  # above what both windows of HTTP/2 let a side hold, so what it takes at once is no flood
TURN_S = 0.05  # of the loop; a leg whose bytes take longer gets fewer at a time
READ_S = 0.05  # until inspectors are asked about what came, where nothing waits for their answer
ANOTHER_HANDSHAKE = "the origin begins another handshake, in which it may ask for a client's certificate"

Connect = Callable[[Server], Awaitable[Side]]


class Dialogue:
    """`ended` is done when the client's leg is closed; its result says how."""

    def __init__(
        self,
        hand_over: HandOver,
        context: Context,
        front: Side,
        back: Side | None,
        *,
        watch: Watch,
        recorder: Recorder,
        connect: Connect,
        answered: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`answered` is called when the origin that was handed over first says something inside TLS.

        Without `back` there is no origin: whoever decides about requests has to refuse them all.
        """
        self._hand_over, self._context, self._front = hand_over, context, front
        self._recorder, self._connect, self._loop = recorder, connect, loop
        self._answered = answered
        self._hooks, self._watch = Hooks(hand_over, watch, recorder, Pauses(loop, self._dispatch, self._fault)), watch
        self._sides: dict[Connection, Side] = {side.connection: side for side in (front, back) if side is not None}
        self._events: deque[events.Event] = deque()
        self._busy = self._held = False
        self._layer: Http | Relay | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: Ended | None = None
        self.was_heard = False
        """The client has said something inside TLS: it took the certificate."""
        self.was_answered = False
        """The origin has said something inside TLS, or was the first to end."""
        self.ended: asyncio.Future[Ended] = loop.create_future()

    def start(self, *, is_http: bool | None) -> None:
        """Begin; both legs are the dialogue's from now on. None: the first bytes tell."""
        if is_http is not None:
            self._choose(is_http=is_http)
        for side in tuple(self._sides.values()):
            if self._ending is None:
                self._listen(side)
        for side in self._sides.values():
            if side is not self._front or not self.was_heard:  # else the answer to it takes along what was put off
                side.leg.catch_up()

    def _choose(self, *, is_http: bool) -> None:
        """Which of mitmproxy's layers takes the flow, and what came before the choice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before = tuple(self._events)
        self._events.clear()
        try:
            self._hooks.begin(is_http=is_http)
        except Blocked as blocked:
            return self.end(Ended(Outcome.BLOCKED, str(blocked), reset=True))
        self._layer = (
            Http(self._context, self._hooks.new_exchange, self._hooks.broken, self._hooks.origin_broke)
            if is_http
            else Relay(self._context, self._hooks.ending)
        )
        self._dispatch(events.Start())
        for event in before:
            self._dispatch(event)

    def _sniff(self) -> None:
        """Whoever speaks first settles it; a client whose words stay open for SNIFF_S speaks no HTTP."""
        first = b""
        for event in self._events:
            if isinstance(event, events.DataReceived):
                if event.connection is not self._front.connection:
                    return self._choose(is_http=False)
                first += event.data
            else:
                return self._choose(is_http=bool(first) and looks_like_http(first) is not False)
        is_http = looks_like_http(first)
        if is_http is not None:
            self._choose(is_http=is_http)
        elif self._timer is None:
            self._timer = self._loop.call_later(SNIFF_S, self._give_up_sniffing)

    def _give_up_sniffing(self) -> None:
        """The client waits for an answer to half a line. Should that become a request after all, the flow ends."""
        self._hooks.unfinished = b""
        self._choose(is_http=False)

    # -- from the legs -------------------------------------------------------------------------------------------------
    def _listen(self, side: Side) -> None:
        side.leg.on_room = self._balance
        if side.session is not None:
            self._received(side, b"")  # what came with the last flight of the handshake
        side.leg.listen(lambda data: self._turn(side, data), lambda: self._leg_ended(side))

    def _turn(self, side: Side, data: bytes) -> None:
        """What is cheap to send may be dear to read: nobody gets the loop for long (see Leg.pace)."""
        begun_s = time.monotonic()
        self._received(side, data)
        is_slow = time.monotonic() - begun_s > TURN_S
        if is_slow or side.leg.chunk_bytes < CHUNK_BYTES:
            side.leg.pace(slower=is_slow)

    def _received(self, side: Side, data: bytes) -> None:
        if self._ending is not None:
            return
        session = side.session
        if session is None:
            return self._dispatch(events.DataReceived(side.connection, data))
        try:
            if data:
                session.feed(data)
            plain = session.read()
            side.leg.write(session.outgoing())
        except TlsFailed as error:
            return self._tls_failed(side, error)
        if session.is_asked:
            return self.end(Ended(Outcome.ORIGIN_REFUSED, ANOTHER_HANDSHAKE, reset=True))
        if plain:
            if side is self._front:
                self.was_heard = True
            elif not self.was_answered:
                self.was_answered = True
                self._answered()
            self._dispatch(events.DataReceived(side.connection, plain))
        if session.closed:
            self._side_over(side)

    def _tls_failed(self, side: Side, error: TlsFailed) -> None:
        if side is not self._front:
            outcome = Outcome.ORIGIN_REFUSED if error.alert is not None else Outcome.ORIGIN_RESET
            return self.end(Ended(outcome, f"TLS: {error}", reset=True))
        if alerts.is_distrust(error.alert):
            return self.end(Ended(Outcome.CLIENT_REJECTED, f"TLS: {error}"))
        self.end(Ended(Outcome.COMPLETED, f"TLS: {error}"))

    def _leg_ended(self, side: Side) -> None:
        if side.leg.error is None:
            return self._side_over(side)
        if side is self._front:
            return self.end(Ended(Outcome.COMPLETED, "the client reset the connection", reset=True))
        if self._hooks.busy or isinstance(self._layer, Relay):
            return self.end(Ended(Outcome.ORIGIN_RESET, "the origin reset the connection", reset=True))
        self._side_over(side)

    def _side_over(self, side: Side) -> None:
        if side.over or self._ending is not None:
            return
        side.over = True
        self.was_answered = self.was_answered or (side is not self._front and not self._front.over)
        self._hooks.origin_ends = side is not self._front
        side.connection.state &= ~ConnectionState.CAN_READ
        self._dispatch(events.ConnectionClosed(side.connection))
        self._hooks.origin_ends = False
        is_over = side is self._front and side.connection.state is ConnectionState.CLOSED  # the origin was the first
        if is_over and not isinstance(self._layer, Relay):  # which says so itself
            return self.end(self._hooks.noted or Ended(Outcome.COMPLETED))
        if side is not self._front and len(self._sides) == 1 and self._timer is None and self._ending is None:
            self._timer = self._loop.call_later(IDLE_WITHOUT_ORIGIN_S, self._idle)

    def _idle(self) -> None:
        self._timer = None
        if len(self._sides) == 1 and not self._tasks:
            self.end(Ended(Outcome.COMPLETED))
        elif len(self._sides) == 1:
            self._timer = self._loop.call_later(IDLE_WITHOUT_ORIGIN_S, self._idle)

    # -- through the layers --------------------------------------------------------------------------------------------
    def _dispatch(self, event: events.Event) -> None:
        self._events.append(event)
        if self._busy:
            return
        if self._layer is None:
            return self._sniff()
        self._busy = True
        try:
            while self._events:
                for command in self._layer.handle_event(self._events.popleft()):
                    self._obey(command)
                    if self._is_over():
                        return
            if self._watch.unread:
                self._read()
            for side in self._sides.values():
                side.flush()
                if side.leg.queued > QUEUE_LIMIT_BYTES:
                    return self._flooded(side)
        except TlsFailed as error:
            self.end(Ended(Outcome.FAULT, f"TLS: {error}", reset=True))
        except Exception as error:
            self._fault(error)
        finally:
            self._busy = False
            self._hooks.requests.settle()
        if self._ending is None:
            self._balance()

    def _fault(self, error: Exception) -> None:
        self.end(ending(error, self._hand_over.flow, self._recorder))

    def _read(self) -> None:
        """Inspectors' turn, before anything of this turn is sent where they can end the flow. Raises Blocked."""
        if self._watch.prompt:
            self._watch.settle()
        elif self._read_timer is None:
            self._read_timer = self._loop.call_later(READ_S, self._read_late)

    def _read_late(self) -> None:
        self._read_timer = None
        self._watch.settle()

    def _flooded(self, side: Side) -> None:
        """It makes us say more than it takes: no answer of an origin's is read while so much waits."""
        who = "client" if side is self._front else "origin"
        self._recorder.record(FaultSeen(what="flood", detail=who, failed="closed", flow=self._hand_over.flow))
        self.end(Ended(Outcome.MALFORMED, f"the {who} makes us answer, and reads nothing", reset=True))

    def _is_over(self) -> bool:
        return self._ending is not None

    def _obey(self, command: commands.Command) -> None:
        if isinstance(command, commands.SendData):
            side = self._sides.get(command.connection)
            if side is not None:
                side.pending.append(command.data)
        elif isinstance(command, Told):
            answer = self._hooks.answer(command)
            if answer is not None:
                self._events.append(answer)
        elif isinstance(command, Whole):
            if not (self._watch.prompt and self._watch.unread):  # else inspectors are first
                self._front.flush()
        elif isinstance(command, commands.OpenConnection):
            task = self._loop.create_task(self._further(command))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(command, commands.CloseConnection):
            half = isinstance(command, commands.CloseTcpConnection) and command.half_close
            self._close(command.connection, half=half)

    async def _further(self, command: commands.OpenConnection) -> None:
        connection, origin = command.connection, self._hand_over.origin
        error: str | None = None
        try:
            if connection.address != (origin.address, origin.port):
                raise Ended(Outcome.FAULT, f"{connection.address} is not the origin that was decided")
            side = await self._connect(connection)
        except Ended as ended:
            error = connection.error = ended.error or str(ended.outcome)
            self._hooks.noted = ended
        except Exception as failure:
            return self._fault(failure)
        if self._ending is not None:
            if error is None:
                side.leg.abort()
            return
        if error is None:
            self._sides[connection] = side
            connection.state = ConnectionState.OPEN
            connection.timestamp_start = time.time()
        self._dispatch(events.OpenConnectionCompleted(command, error))
        if error is None and self._ending is None:
            self._listen(side)
            side.leg.catch_up()

    def _close(self, connection: Connection, *, half: bool) -> None:
        side = self._sides.get(connection)
        if side is None:
            return
        if half:
            if connection.state & ConnectionState.CAN_WRITE:
                side.say_goodbye()
                side.leg.finish()
                connection.state &= ~ConnectionState.CAN_WRITE
            if connection.state is not ConnectionState.CLOSED:
                return
        if side is self._front:
            return self.end(self._hooks.noted or Ended(Outcome.COMPLETED))
        connection.state = ConnectionState.CLOSED
        del self._sides[connection]
        self._let_go(side)
        side.forget()
        self._events.append(events.ConnectionClosed(connection))

    def _balance(self) -> None:
        """A leg is read only while there is room for what it brings."""
        if self._ending is not None:
            return
        front = self._front
        held = self._held or (self._hooks.waits and not (isinstance(self._layer, Http) and self._layer.is_multiplexed))
        can_read_back, can_read_front = not (held or front.leg.full), not held
        for side in self._sides.values():
            if side is not front:
                if side.leg.full:
                    can_read_front = False
                side.leg.resume() if can_read_back else side.leg.pause()
        if can_read_front and not (isinstance(self._layer, Http) and self._layer.ahead):
            front.leg.resume()
        else:
            front.leg.pause()

    def hold(self, held: bool) -> None:
        """Read nothing while `held`."""
        self._held = held
        self._balance()

    # -- the end -------------------------------------------------------------------------------------------------------
    def end(self, ended: Ended) -> None:
        """Close everything; idempotent, the first reason counts."""
        if self._ending is not None:
            return
        try:
            self._watch.settle()
        except Blocked as blocked:
            ended = Ended(Outcome.BLOCKED, str(blocked), reset=True)
        if ended.outcome is Outcome.COMPLETED and not ended.error and self._hooks.unanswered:
            ended = Ended(ended.outcome, "the client ended before its answer was complete", reset=ended.reset)
        self._ending = ended
        if self._timer is not None:
            self._timer.cancel()
        if self._read_timer is not None:
            self._read_timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._hooks.end()
        for side in self._sides.values():
            if side is not self._front:
                side.leg.abort() if ended.reset or ended.answer else self._let_go(side)
        self._front.pending.append(ended.answer)
        leg = self._front.leg
        leg.on_closed = self._closed
        if ended.reset:
            leg.abort()
        else:
            self._let_go(self._front)
        for side in self._sides.values():
            side.forget()

    def _let_go(self, side: Side) -> None:
        try:
            side.say_goodbye()
        except TlsFailed:
            side.leg.abort()
        side.leg.on_data, side.leg.on_end = lambda _data: None, None
        side.leg.close()

    def _closed(self) -> None:
        self._layer = None
        if not self.ended.done() and self._ending is not None:
            self.ended.set_result(self._ending)
