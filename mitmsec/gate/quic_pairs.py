"""What a worker has of a flow of QUIC: an end of two pairs of sockets, each packet of which is one datagram.

    program ◄──► relay's socket ◄──► front ═══ worker ═══ back ◄──► the flow's own socket ◄──► origin

The UDP sockets themselves stay here. Whoever has one can send anywhere with it, whatever it is connected to: sendmsg()
takes an address, and no filter of system calls sees that. A pair has two ends and no way out. A packet for which it has
no room is lost, as on any way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from mitmsec.core.model import Value

ROOM_BYTES = 1 << 20  # the kernel allows less by default, and counts more than is in a packet
DATAGRAM_LIMIT_BYTES = 65535
TURN_LIMIT = 64  # datagrams, then others have their turn
REST_LIMIT = 1024
GOODBYE_S = 0.5  # for the worker to end its connections once nothing more comes
GOODBYE_BYTES = 4096  # each way: enough for that, and for nothing else, since the flow's end is on record by then


class Outlets(Value, frozen=True):
    """Where what the worker sends goes, and who is told when nothing more of it will come."""

    client: Callable[[bytes], None]
    origin: Callable[[bytes], None]
    closed: Callable[[], None]


class Pairs:
    """Owns our ends, and the worker's until `handed`. Raises OSError when made, where there are no descriptors."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outlets: Outlets) -> None:
        self._loop, self._outlets = loop, outlets
        self._timer: asyncio.TimerHandle | None = None
        self._front, front = _pair()
        try:
            self._back, back = _pair()
        except OSError:
            self._front.close()
            front.close()
            raise
        self._theirs = front, back
        self._to = {self._front: outlets.client, self._back: outlets.origin}
        self._goodbye_bytes: dict[socket.socket, int] = {}  # that may still go out; empty: all may
        for sock in self._to:
            loop.add_reader(sock, self._readable, sock)

    @property
    def theirs(self) -> tuple[int, int]:
        """Descriptors for the worker: towards the client, towards the origin."""
        front, back = self._theirs
        return front.fileno(), back.fileno()

    def handed(self) -> None:
        """The worker has its ends, or will never have them."""
        for sock in self._theirs:
            sock.close()

    def client_sent(self, datagram: bytes) -> None:
        """To the worker, if it has room."""
        _send(self._front, datagram)

    def origin_sent(self, datagram: bytes) -> None:
        _send(self._back, datagram)

    def _readable(self, sock: socket.socket, limit: int = TURN_LIMIT) -> None:
        for _ in range(limit):
            try:
                datagram = sock.recv(DATAGRAM_LIMIT_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                datagram = b""
            if not datagram:
                return self._over(sock)
            if self._may_go(sock, len(datagram)):
                self._to[sock](datagram)

    def _may_go(self, sock: socket.socket, size_bytes: int) -> bool:
        if self._timer is None:
            return True
        self._goodbye_bytes[sock] -= size_bytes
        return self._goodbye_bytes[sock] >= 0

    def _over(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        del self._to[sock]
        if not self._to:
            self.close()

    def read(self) -> None:
        """Pass on what the worker has sent by now."""
        for sock in list(self._to):
            self._readable(sock, REST_LIMIT)

    def let_go(self) -> None:
        """The worker hears nothing more, and sees that; a goodbye goes out. Then it is closed."""
        if self._timer is not None or not self._to:
            return
        self._goodbye_bytes = dict.fromkeys(self._to, GOODBYE_BYTES)
        for sock in self._to:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        self._timer = self._loop.call_later(GOODBYE_S, self.close)

    def close(self) -> None:
        """Now. Idempotent."""
        if self._front.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._to:
            self._loop.remove_reader(sock)
        self._to.clear()
        for sock in (self._front, self._back):
            sock.close()
        self._outlets.closed()


def _pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)
    return ends


def _send(sock: socket.socket, datagram: bytes) -> None:
    if datagram:  # an empty packet would look like the end
        with contextlib.suppress(OSError):
            sock.send(datagram)
