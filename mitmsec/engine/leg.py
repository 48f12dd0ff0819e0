"""One socket of a flow: non-blocking, counted, with bounded queues on both sides.

    kernel ──► readable ──► on_data, or `take`/`chunk` while nobody listens yet
    kernel ◄── write ◄── queue ◄── what the kernel did not take; `full` above HIGH_BYTES, `on_room` below LOW_BYTES

Closing is told apart four ways because the gate keeps a duplicate of the client's socket, so that closing our
descriptor alone tells the peer nothing:

    let_go   nothing: the gate goes on with it
    finish   what was put off and the queue, then FIN; reading goes on
    close    as finish; then what still comes is drained for a moment (unread bytes would turn the end into a reset)
    abort    a reset, when the last duplicate is closed
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable

CHUNK_BYTES = 1 << 16  # read at once, at most
FIRST_CHUNK_BYTES = 1 << 14
LEAST_CHUNK_BYTES = 1 << 10
JOIN_BYTES = 1 << 12
HIGH_BYTES = 1 << 18
LOW_BYTES = 1 << 16
LINGER_S = 2.0
FLUSH_S = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Leg:
    """`on_wire(sent, data)` sees raw bytes when the kernel takes (True) or gives (False) them."""

    __slots__ = (
        "_closing", "_eof_queued", "_is_finished", "_late", "_loop", "_on_wire", "_out", "_reading", "_sock", "_timer",
        "_waiter", "_writing", "chunk_bytes", "closed", "ended", "error", "inbox", "on_closed", "on_data", "on_end",
        "on_room", "queued", "received", "sent",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_wire: Callable[[bool, bytes], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = loop
        self._on_wire = on_wire
        self._out: deque[bytes | memoryview] = deque()
        self._late = b""  # put off
        self._reading = self._writing = self._closing = self._eof_queued = False
        self._is_finished = False  # FIN is sent
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.chunk_bytes = FIRST_CHUNK_BYTES
        self.queued = 0  # bytes
        self.received = 0
        self.sent = 0
        self.ended = False  # nothing more will be received
        self.error: OSError | None = None  # why, unless the peer ended in order
        self.closed = False
        self.inbox: deque[bytes] = deque()
        self.on_data: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_closed: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """More is queued than a peer that reads would leave."""
        return self.queued > HIGH_BYTES

    # -- receiving -----------------------------------------------------------------------------------------------------
    async def chunk(self, *, is_there: bool = False) -> bytes:
        """The next bytes; b"" at the end. Raises OSError when the peer did not end in order.

        `is_there`: they have probably come, and a look is cheaper than to wait for the kernel's word.
        """
        while not self.inbox and not self.ended:
            if is_there:
                self._readable()
                if self.inbox or self.ended:
                    break
            self.resume()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.inbox:
            return self.inbox.popleft()
        if self.error is not None:
            raise self.error
        return b""

    def listen(self, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """From now on bytes go to `on_data` as they come, what had come already first."""
        self.on_data, self.on_end = on_data, on_end
        while self.inbox and not self.closed:
            on_data(self.inbox.popleft())
        if self.ended and not self.closed:
            on_end()
        else:
            self.resume()

    def resume(self) -> None:
        if not self._reading and not self.ended and not self.closed:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def pace(self, *, slower: bool) -> None:
        """Read less at a time, so that others get their turn, or more again."""
        if slower:
            self.chunk_bytes = max(LEAST_CHUNK_BYTES, self.chunk_bytes >> 1)
        else:
            self.chunk_bytes = min(CHUNK_BYTES, self.chunk_bytes << 1)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(self.chunk_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._end(error)
        if not data:
            return self._end(None)
        if self._closing:
            return  # draining
        self.received += len(data)
        if self._on_wire is not None:
            self._on_wire(False, data)
        if self.on_data is not None:
            return self.on_data(data)
        self.inbox.append(data)
        if len(self.inbox) >= HIGH_BYTES // CHUNK_BYTES:
            self.pause()
        self._wake()

    def _end(self, error: OSError | None) -> None:
        self.pause()
        self.ended, self.error = True, error or self.error
        self._wake()
        if self._closing:
            return self._shut() if not self._out or self.error else None
        if self.on_end is not None:
            self.on_end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- sending -------------------------------------------------------------------------------------------------------
    def put_off(self, data: bytes) -> None:
        """Send it in front of what is written next, or with `catch_up`: nobody waits for it."""
        self._late += data

    def catch_up(self) -> None:
        """Send what was put off."""
        if self._late:
            late, self._late = self._late, b""
            self.write(late)

    def write(self, data: bytes) -> None:
        """Send, or queue what the kernel does not take. A peer that has gone is found out by reading."""
        if not data or self.closed or self._eof_queued:
            return
        if self._late:
            data, self._late = self._late + data, b""
        rest: bytes | memoryview = data
        if not self._out:
            taken = self._send(data)
            if taken == len(data):
                return
            rest = memoryview(data)[taken:]
        last = self._out[-1] if len(self._out) > 1 else b""
        if isinstance(last, bytes) and 0 < len(last) + len(rest) <= JOIN_BYTES and last:
            self._out[-1] = last + rest  # a queue of many small pieces costs far more than what is in them
        else:
            self._out.append(rest)
        self.queued += len(rest)
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._writable)

    def _send(self, data: bytes | memoryview) -> int:
        try:
            taken = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if self.error is None:
                self.error = error  # told here once; a reader would only see an end
                if self.ended and self.on_end is not None:
                    self._loop.call_soon(self.on_end)
            return len(data)
        self.sent += taken
        if self._on_wire is not None and taken:
            self._on_wire(True, bytes(data[:taken]))
        return taken

    def _writable(self) -> None:
        while self._out:
            data = self._out[0]
            taken = self._send(data)
            self.queued -= taken
            if taken < len(data):
                if taken:
                    self._out[0] = memoryview(data)[taken:]
                break
            self._out.popleft()
        if not self._out:
            self._writing = False
            self._loop.remove_writer(self._sock)
            if self._eof_queued:
                self._send_fin()
        if self.queued <= LOW_BYTES and self.on_room is not None and not self._closing:
            self.on_room()

    # -- ending --------------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """What was put off and the queue, then FIN. Reading goes on."""
        if not self.closed and not self._eof_queued:
            self.catch_up()
            self._eof_queued = True
            if not self._out:
                self._send_fin()

    def _send_fin(self) -> None:
        if not (self._closing and self.ended):  # else both directions are shut at once
            self._is_finished = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        if self._closing:
            self._linger()

    def close(self) -> None:
        """End in order; `on_closed` tells when. Bounded by FLUSH_S and LINGER_S."""
        if self.closed or self._closing:
            return
        self._closing = True
        self.inbox.clear()
        if self.error is not None:
            return self._shut()
        self.catch_up()
        if self._out:
            self._timer = self._loop.call_later(FLUSH_S, self.abort)
        if self._eof_queued and not self._out:
            return self._linger()
        self.finish()

    def _linger(self) -> None:
        if self.ended:
            return self._shut()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self._shut)
        self.resume()

    def _shut(self) -> None:
        if not (self._is_finished and self.ended):  # else both have said their last
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._release()

    def abort(self) -> None:
        """A reset for the peer. Idempotent.

        In a worker the call is denied, and the gate has made it already: it resets when it hears `FlowEnded.reset`, or
        that the worker has died; if the gate itself has gone, our close does.
        """
        if not self.closed:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._release()

    def let_go(self) -> None:
        """Close our descriptor and tell the peer nothing: somebody else goes on with the socket. Idempotent."""
        self._release()

    def _release(self) -> None:
        if self.closed:
            return
        self.pause()
        if self._writing:
            self._loop.remove_writer(self._sock)
        if self._timer is not None:
            self._timer.cancel()
        self.closed = self.ended = True
        self._out.clear()
        self._late = b""
        self.queued = 0
        self._sock.close()
        self._wake()
        on_closed = self.on_closed
        self.on_data = self.on_end = self.on_room = self.on_closed = self._on_wire = None  # no cycles
        if on_closed is not None:
            on_closed()


async def part(front: Leg, back: Leg | None, *, reset: bool) -> None:
    """Both are closed, or on their way there; the client's is when this returns."""
    if back is not None:
        back.abort() if reset else back.close()
    if reset:
        front.abort()
    elif not front.closed:
        closed = asyncio.Event()
        front.on_closed = closed.set
        front.on_data = _ignore
        front.on_end = None
        front.close()
        try:
            if not front.closed:
                await closed.wait()
        except asyncio.CancelledError:  # told to stop while the client takes its time
            front.abort()


def _ignore(_data: bytes) -> None:
    return
