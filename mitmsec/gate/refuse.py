"""Saying no: a reset, or for plain HTTP a page that names the rule and the flow.

`reset` has to work on a socket whose descriptor a worker holds as well: closing our own copy would then send nothing.
Dissolving the connection with connect(AF_UNSPEC) sends the RST at once, whoever else has it open.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable

from mitmsec.core.block_page import block_text
from mitmsec.gate.lean_loop import Loop

LINGER_S = 1.0  # for the client to read the page before its socket is closed under it
SWALLOW_BYTES = 65536
_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
_libc = ctypes.CDLL(None, use_errno=True)


def reset(sock: socket.socket) -> None:
    """End the connection with RST and close our descriptor. Never raises."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    if sock.fileno() >= 0:
        _libc.connect(sock.fileno(), _NOWHERE, len(_NOWHERE))
    sock.close()


def page(rule: str, reason: str, flow: str) -> bytes:
    """The answer to any HTTP request of a blocked flow."""
    body = block_text(rule, reason, flow).encode()
    head = (
        "HTTP/1.1 403 Forbidden\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Cache-Control: no-store\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


class Farewell:
    """Sends a page and closes once the client has read it, has gone, or `LINGER_S` is over.

    What the client still sends is swallowed: closing with unread bytes would send an RST, which can overtake the page.
    """

    def __init__(self, loop: Loop, sock: socket.socket, text: bytes, on_end: Callable[[], None]) -> None:
        self._loop, self._sock, self._on_end = loop, sock, on_end
        with contextlib.suppress(OSError):  # under a kilobyte into an empty buffer: taken whole, or the client gone
            sock.send(text)
            sock.shutdown(socket.SHUT_WR)
        self._timer = loop.call_later(LINGER_S, self.end)
        loop.add_reader(sock, self._swallow)

    def _swallow(self) -> None:
        try:
            while self._sock.recv(SWALLOW_BYTES):
                pass
        except BlockingIOError:
            return
        except OSError:
            pass
        self.end()

    def end(self) -> None:
        """Close now. Idempotent."""
        if self._sock.fileno() >= 0:
            self._timer.cancel()
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._on_end()
