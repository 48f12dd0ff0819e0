"""Learning that a connection has ended without reading it: somebody else does, on a duplicate of the socket.

One epoll for all of them, itself watched by the loop. It asks for no data (EPOLLIN), so traffic never wakes it.
Each end is told once; `watch` again arms it again, and tells at once what still holds.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable

_TCP_INFO = struct.Struct("=120xQQ")  # struct tcp_info of linux/tcp.h up to tcpi_bytes_acked, tcpi_bytes_received


def moved_bytes(sock: socket.socket) -> int:
    """How many bytes have passed on this connection, both ways, as far as its other side has confirmed them."""
    acked, received = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    return int(acked + received)


class Hangups:
    """Sockets that are watched for their end. Whoever closes one must `forget` it first: a duplicate keeps it alive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def __len__(self) -> int:
        return len(self._told)

    def watch(self, sock: socket.socket, told: Callable[[], None], *, half: bool) -> None:
        """Tell when both directions have ended; with `half`, when the other side has ended its own."""
        events = select.EPOLLONESHOT | (select.EPOLLRDHUP if half else 0)  # EPOLLHUP and EPOLLERR always come
        fd = sock.fileno()
        if fd in self._told:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._told[fd] = told

    def forget(self, sock: socket.socket) -> None:
        """Idempotent."""
        if self._told.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def close(self) -> None:
        """Idempotent."""
        if self._epoll.closed:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._told.clear()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            told = self._told.get(fd)  # one that was told before it may have had this one forgotten
            if told is not None:
                told()
