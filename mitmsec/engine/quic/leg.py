"""One leg of a QUIC flow: a connection on a socket that carries datagrams, its timers, and counts.

    gate ── datagram, one packet of a SOCK_SEQPACKET pair ──► receive_datagram ──► events ──► on_event, then on_turn
         ◄── what there is room for; the rest is lost, as on any way ── datagrams_to_send ◄── flush

Nothing here is queued: what the other end does not take is lost, and QUIC sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent

from mitmsec.engine.quic.connection import Connection

DATAGRAM_LIMIT_BYTES = 65535
TURN_LIMIT = 32  # datagrams, then others have their turn
PEER = ("", 0)  # there is one, and the gate knows where


class QuicFailed(Exception):
    """The connection has ended, or what came cannot be understood. `alert`: of TLS, where that is why."""

    def __init__(self, reason: str, *, by_peer: bool = False, alert: int | None = None) -> None:
        super().__init__(reason)
        self.by_peer, self.alert = by_peer, alert


class QuicLeg:
    """Owns its socket. `on_failed` is called once, when the connection is over or the other end of the socket is."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        sock.setblocking(False)
        self._sock, self._loop, self.connection = sock, loop, connection
        self._timer: asyncio.TimerHandle | None = None
        self._shaken: asyncio.Future[None] = loop.create_future()
        self._early: list[QuicEvent] = []
        self.on_event: Callable[[QuicEvent], None] = self._early.append
        self.on_turn: Callable[[], None] = lambda: None
        self.on_failed: Callable[[QuicFailed], None] = lambda failed: None
        self.failed: QuicFailed | None = None
        self.received = self.sent = 0
        self.closed = False
        loop.add_reader(sock, self._readable)

    async def shake(self) -> None:
        """Until the handshake is done. Raises QuicFailed."""
        self.flush()
        if self.failed is not None:
            raise self.failed
        await self._shaken

    def listen(self, on_event: Callable[[QuicEvent], None], on_turn: Callable[[], None]) -> None:
        """From now on events go there, what had come already first; `on_turn` follows those that came together."""
        early, self._early = self._early, []
        self.on_event, self.on_turn = on_event, on_turn
        for event in early:
            on_event(event)
        on_turn()

    # -- receiving -----------------------------------------------------------------------------------------------------
    def _readable(self) -> None:
        for _ in range(TURN_LIMIT):
            try:
                datagram = self._sock.recv(DATAGRAM_LIMIT_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                return self._fail(QuicFailed(str(error)))
            if not datagram:
                self._loop.remove_reader(self._sock)
                return self._fail(QuicFailed("the gate has let go", by_peer=True))
            self.heard(datagram)
            if self.closed or self.failed is not None:
                return
        self._turn()

    def heard(self, datagram: bytes) -> None:
        """One that has come; to be followed by a turn."""
        self.received += len(datagram)
        try:
            self.connection.receive_datagram(datagram, PEER, self._loop.time())
        except Exception as error:  # aioquic asserts what a hostile peer can break
            return self._fail(QuicFailed(f"cannot be understood: {type(error).__name__}"))
        self._pump()

    def _pump(self) -> None:
        while self.failed is None and (event := self.connection.next_event()) is not None:
            if isinstance(event, HandshakeCompleted) and not self._shaken.done():
                self._shaken.set_result(None)
            elif not isinstance(event, ConnectionTerminated):
                self.on_event(event)
        ending = self.connection.ending
        if ending is not None and self.failed is None:
            self.flush()  # where it is for us to say
            self._fail(failure_of(ending, by_peer=self.connection.is_ended_by_peer))

    def _turn(self) -> None:
        self.on_turn()
        self.flush()

    def _fail(self, failed: QuicFailed) -> None:
        if self.failed is not None:
            return
        self.failed = failed
        if not self._shaken.done():
            self._shaken.set_exception(failed)
            self._shaken.exception()  # somebody may have given up waiting
        self.on_failed(failed)

    # -- sending -------------------------------------------------------------------------------------------------------
    def flush(self) -> None:
        """Send what there is to send, and come back when aioquic wants that."""
        if self.closed:
            return
        try:
            datagrams = self.connection.datagrams_to_send(self._loop.time())
        except Exception as error:
            return self._fail(QuicFailed(f"cannot be answered: {type(error).__name__}"))
        for datagram, _ in datagrams:
            with contextlib.suppress(OSError):  # it has no room, or has gone
                self._sock.send(datagram)
                self.sent += len(datagram)
        self._come_back()

    def _come_back(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at_s = self.connection.get_timer()
        self._timer = None if at_s is None else self._loop.call_at(at_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        try:
            self.connection.handle_timer(self._loop.time())
        except Exception as error:
            return self._fail(QuicFailed(f"cannot go on: {type(error).__name__}"))
        self._pump()
        if not self.closed and self.failed is None:
            self._turn()

    # -- the end -------------------------------------------------------------------------------------------------------
    def close(self, error_code: int, reason: str = "") -> None:
        """Say CONNECTION_CLOSE where that has not been said, and let go. Idempotent."""
        if self.closed:
            return
        self.failed = self.failed or QuicFailed("closed")
        if self.connection.ending is None:
            self.connection.close(error_code=error_code, reason_phrase=reason)
            self.flush()
        self.release()

    def release(self) -> None:
        """Say nothing. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._shaken.done():
            self._shaken.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self.on_event = self._early.append
        self.on_turn, self.on_failed = lambda: None, lambda failed: None  # no cycles


CRYPTO_ERROR, CRYPTO_ERRORS = 0x100, 0x100  # the first, and how many: TLS alerts (RFC 9001 §4.8)


def failure_of(ending: ConnectionTerminated, *, by_peer: bool) -> QuicFailed:
    """What the end of a connection says."""
    is_alert = ending.frame_type is not None and CRYPTO_ERROR <= ending.error_code < CRYPTO_ERROR + CRYPTO_ERRORS
    alert = ending.error_code - CRYPTO_ERROR if is_alert else None
    reason = ending.reason_phrase or ("" if not ending.error_code else f"error 0x{ending.error_code:x}")
    return QuicFailed(reason, by_peer=by_peer, alert=alert)
