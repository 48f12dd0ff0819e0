"""Reading a socket's first bytes without taking them, and without spinning.

A socket with peeked bytes stays readable, so a level-triggered loop would call again and again. SO_RCVLOWAT makes the
kernel call only when the number of bytes that can change the answer lies there, at the end of the stream, or when its
buffer can take no more (tcp(7), socket(7)). Whoever reads the socket next gets SO_RCVLOWAT back at 1.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from mitmsec.core.sniff import FIRST_BYTES_LIMIT
from mitmsec.gate.lean_loop import Loop


class Peek:
    """Peeks one connected, non-blocking socket. `told(data, more)`: all that lies there; `more`: more can come.

    `gone()` instead if the other side has reset the connection.
    """

    __slots__ = ("_at_least_bytes", "_gone", "_loop", "_lowat", "_sock", "_told")

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        told: Callable[[bytes, bool], None],
        gone: Callable[[], None],
    ) -> None:
        self._loop, self._sock, self._told, self._gone = loop, sock, told, gone
        self._at_least_bytes = self._lowat = 1

    def wait(self, at_least_bytes: int) -> None:
        """Tell once, when so many bytes lie there or no more can come: of the first at once if they are there."""
        self._at_least_bytes = at_least_bytes
        self._set_lowat(at_least_bytes)
        if at_least_bytes > 1 or not self._look():
            self._loop.add_reader(self._sock, self._readable)

    def stop(self) -> None:
        """Leave the socket as it was."""
        self._loop.remove_reader(self._sock)
        self._set_lowat(1)

    def _set_lowat(self, size_bytes: int) -> None:
        if size_bytes != self._lowat:
            self._lowat = size_bytes
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)

    def _readable(self) -> None:
        self._look()

    def _look(self) -> bool:
        """Whether there was something to tell."""
        try:
            data = self._sock.recv(FIRST_BYTES_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            self._loop.remove_reader(self._sock)
            self._gone()
            return True
        self._loop.remove_reader(self._sock)
        self._told(data, len(data) >= self._at_least_bytes)
        return True
