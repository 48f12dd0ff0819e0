"""A dialogue in plaintext that may go on under TLS: relayed, read by inspectors, and let go of where TLS begins.

    client ── leg ──► recogniser, inspectors ──► leg ── origin
           ◄────────                         ◄────────
                        │ both have agreed to TLS, and all that was said before is out
                        ▼
              Upgrading ──► gate: looks at the hello, decides by its name, hands over anew or relays

Not a byte of what is said inside TLS is read here, and nothing that was said outside goes in: see mitmsec.core.upgrade.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import FlowEnded, HandOver, Upgrading
from mitmsec.core.upgrade import Malformed, Step, recogniser
from mitmsec.engine.dialogue import READ_S, TURN_S
from mitmsec.engine.leg import CHUNK_BYTES, FIRST_CHUNK_BYTES, Leg, part
from mitmsec.engine.side import Ended, ending
from mitmsec.engine.stream import Stream, plain
from mitmsec.engine.watch import Watch
from mitmsec.engine.wire import Wire

if TYPE_CHECKING:
    from mitmsec.engine.engine import Engine


class Prelude:
    """Owns both sockets. `run` never raises but for cancellation, which cuts the flow."""

    def __init__(self, engine: Engine, hand_over: HandOver, client: socket.socket, origin: socket.socket) -> None:
        """Raises ValueError where the dialogue is of a protocol that never goes on under TLS."""
        self._engine, self._hand_over = engine, hand_over
        self._recogniser = recogniser(hand_over.protocol)
        self._loop = asyncio.get_running_loop()
        self._recorder = engine.collaborators.recorder
        self._wire = Wire(hand_over.flow, self._recorder, self._loop, self._hold)
        self._front = Leg(client, self._loop, self._wire.passed if engine.settings.capture else None)
        self._back = Leg(origin, self._loop)
        self._stream: Stream | None = None
        self._watch: Watch | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._unread = deque[tuple[bytes, bool]]()  # b"": that one says nothing more
        self._is_held = self._is_upgrading = False
        self._ended: asyncio.Future[Ended | None] = self._loop.create_future()
        """None: it goes on under TLS."""

    async def run(self) -> FlowEnded | Upgrading:
        """Serve the dialogue; its end, or how far it has come."""
        try:
            self._begin()
            ended = await self._ended
        except asyncio.CancelledError:
            ended = Ended(Outcome.CUT, "the worker was told to stop", reset=True)
        except Exception as error:
            ended = self._ended_by(error)
        if self._reading is not None:
            self._reading.cancel()
        try:
            self._finish_reading()
        except Exception as error:
            ended = self._ended_by(error)
        self._wire.stop()
        flow, front = self._hand_over.flow, self._front
        if ended is None:
            for leg in (front, self._back):
                leg.let_go()
            return Upgrading(
                flow=flow, bytes_sent=front.received, bytes_received=front.sent, port=self._recogniser.port
            )
        front.write(ended.answer)
        await part(front, self._back, reset=ended.reset)
        return FlowEnded(
            flow=flow,
            bytes_sent=front.received,
            bytes_received=front.sent,
            outcome=ended.outcome,
            error=ended.error,
            reset=ended.reset,
        )

    def _ended_by(self, error: Exception) -> Ended:
        return ending(error, self._hand_over.flow, self._recorder)

    def _begin(self) -> None:
        """Raises Blocked."""
        order, on_failure = self._hand_over, self._engine.settings.on_failure
        inspectors = self._engine.collaborators.inspectors
        self._watch = Watch(
            order.flow, order.decision, inspectors, on_failure, self._recorder, quarantine=self._engine.quarantine
        )
        self._stream = plain(self._watch, order) if self._watch else None
        self._front.chunk_bytes = self._recogniser.reads_bytes or FIRST_CHUNK_BYTES
        for leg in (self._front, self._back):
            leg.on_room = self._balance
        self._front.listen(lambda data: self._heard(data, sent=True), lambda: self._over(self._front, self._back))
        self._back.listen(lambda data: self._heard(data, sent=False), lambda: self._over(self._back, self._front))

    # -- from the legs -------------------------------------------------------------------------------------------------
    def _heard(self, data: bytes, *, sent: bool) -> None:
        if self._ended.done():
            return
        if self._stream is not None and self._stream.waits:
            return self._put_off(data, sent=sent)
        begun_s = time.monotonic()
        try:
            step = self._recognised(data, sent=sent)
            self._inspect(data, sent=sent)
        except Exception as error:
            return self._end(self._ended_by(error))
        self._pass_on(data, step, sent=sent, is_slow=time.monotonic() - begun_s > TURN_S)

    def _recognised(self, data: bytes, *, sent: bool) -> Step:
        """Raises Ended where nothing of it may go on."""
        step = self._recogniser.sent(data) if sent else self._recogniser.received(data)
        if isinstance(step, Malformed):
            raise Ended(Outcome.MALFORMED, f"{self._hand_over.protocol}: {step.reason}", reset=True)
        return step

    def _pass_on(self, data: bytes, step: Step, *, sent: bool, is_slow: bool = False) -> None:
        self._is_upgrading = step is Step.UPGRADE
        (self._back if sent else self._front).write(data)
        self._pace(self._front if sent else self._back, is_slow=is_slow)
        self._balance()

    def _pace(self, leg: Leg, *, is_slow: bool) -> None:
        """As in mitmsec.engine.dialogue; where the recogniser wants no more than so many bytes, it gets no more."""
        if is_slow or leg.chunk_bytes < CHUNK_BYTES:
            leg.pace(slower=is_slow)
        if leg is self._front and self._recogniser.reads_bytes is not None:
            leg.chunk_bytes = self._recogniser.reads_bytes

    def _over(self, leg: Leg, other: Leg) -> None:
        """The peer on `leg` says nothing more."""
        if leg.error is not None:
            by_client = Ended(Outcome.COMPLETED, "the client reset the connection", reset=True)
            by_origin = Ended(Outcome.ORIGIN_RESET, "the origin reset the connection", reset=True)
            return self._end(by_client if leg is self._front else by_origin)
        if self._stream is not None and self._watch is not None and (self._stream.waits or self._watch.prompt):
            return self._put_off(b"", sent=leg is self._front)
        self._finish(other)

    def _finish(self, other: Leg) -> None:
        other.finish()
        if other.ended:
            self._end(Ended(Outcome.COMPLETED))

    def _balance(self) -> None:
        """A leg is read only while there is room for what it brings; none is where TLS begins."""
        if self._ended.done():
            return
        for leg, other in ((self._front, self._back), (self._back, self._front)):
            is_busy = self._is_upgrading or self._is_held or self._reading is not None
            leg.pause() if is_busy or other.full else leg.resume()
        if self._is_upgrading and self._reading is None and not self._front.queued and not self._back.queued:
            self._end(None)

    def _hold(self, held: bool) -> bool:
        self._is_held = held
        self._balance()
        return True

    def _end(self, ended: Ended | None) -> None:
        if not self._ended.done():
            self._ended.set_result(ended)
        for leg in (self._front, self._back):
            leg.pause()

    # -- inspectors ----------------------------------------------------------------------------------------------------
    def _put_off(self, data: bytes, *, sent: bool) -> None:
        """It goes on once inspectors have looked; meanwhile nothing more is read."""
        self._unread.append((data, sent))
        if self._reading is None:
            self._reading = self._loop.create_task(self._read(self._stream))
        self._balance()

    async def _read(self, stream: Stream | None) -> None:
        try:
            while self._unread and stream is not None and not self._ended.done():
                data, sent = self._unread.popleft()
                if data:
                    step = self._recognised(data, sent=sent)
                    self._pass_on(await stream.read(data, sent=sent), step, sent=sent)
                else:
                    await stream.end(sent=sent)
                    self._finish(self._back if sent else self._front)
        except Exception as error:
            self._end(self._ended_by(error))
        self._reading = None
        self._balance()

    def _inspect(self, data: bytes, *, sent: bool) -> None:
        """Before anything goes on, where they can end the flow. Raises Blocked."""
        if self._stream is None or self._watch is None:
            return
        self._stream.feed(data, sent=sent)
        if self._watch.prompt:
            self._watch.settle()
        elif self._watch.unread and self._read_timer is None:
            self._read_timer = self._loop.call_later(READ_S, self._read_late)

    def _read_late(self) -> None:
        self._read_timer = None
        try:
            self._finish_reading(is_over=False)
        except Exception as error:
            self._end(self._ended_by(error))

    def _finish_reading(self, *, is_over: bool = True) -> None:
        """Raises Blocked."""
        if self._read_timer is not None:
            self._read_timer.cancel()
        if self._watch is not None:
            self._watch.settle()
        if self._stream is not None and is_over:
            self._stream.close()
