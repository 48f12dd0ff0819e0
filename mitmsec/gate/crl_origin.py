"""The origin that the gate is itself: it answers for the revocation lists of the CA (mitmsec.core.crl_place).

    Dial ── connect() ──► a connection over loopback to ourselves: one end is the flow's origin, as any other
                          the other end ◄── GET /KEY.crl ── · ── 200 and the list, or 404 ──►

What comes is a program's, or a worker's, and hostile: a request of `REQUEST_LIMIT_BYTES` at most, within `DEADLINE_S`,
at most `ANSWERING_LIMIT` at once. Each connection gets one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Mapping

REQUEST_LIMIT_BYTES = 8192
DEADLINE_S = 10.0
ANSWERING_LIMIT = 64
_END = b"\r\n\r\n"


class CrlOrigin:
    """`lists` are by path, DER; they may be replaced at any time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.lists: Mapping[str, bytes] = {}
        self._answering: set[_Answer] = set()

    def connect(self) -> socket.socket:
        """A connection whose other end answers. Raises OSError."""
        if len(self._answering) >= ANSWERING_LIMIT:
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        ours, theirs = _loopback()
        self._answering.add(_Answer(self, ours, self._loop))
        return theirs

    def over(self, answer: _Answer) -> None:
        """Nothing more comes of `answer`."""
        self._answering.discard(answer)

    def close(self) -> None:
        for answer in list(self._answering):
            answer.end()


class _Answer:
    """One request, and what it gets."""

    def __init__(self, origin: CrlOrigin, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._origin, self._sock, self._loop = origin, sock, loop
        self._data = b""
        self._left = b""
        self._deadline = loop.call_later(DEADLINE_S, self.end)
        loop.add_reader(sock, self._readable)

    def _readable(self) -> None:
        try:
            piece = self._sock.recv(REQUEST_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._data += piece
        if _END in self._data or len(self._data) > REQUEST_LIMIT_BYTES:
            self._loop.remove_reader(self._sock)
            self._left = response(self._data, self._origin.lists)
            self._loop.add_writer(self._sock, self._writable)
        elif not piece:
            self.end()

    def _writable(self) -> None:
        try:
            self._left = self._left[self._sock.send(self._left) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = b""
        if not self._left:
            self.end()

    def end(self) -> None:
        """In order: what was sent arrives. Idempotent."""
        self._deadline.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._origin.over(self)


def response(request: bytes, lists: Mapping[str, bytes]) -> bytes:
    """HTTP/1.1 (RFC 9110, RFC 5280 §4.2.1.13) for the request that `request` begins with, whatever the bytes."""
    method, _, rest = request.partition(b"\r\n")[0].partition(b" ")
    target = rest.partition(b" ")[0].decode("latin-1")
    path = "/" + target.partition("//")[2].partition("/")[2] if target.startswith("http://") else target
    if method not in (b"GET", b"HEAD"):
        return _answer("405 Method Not Allowed", b"", "text/plain")
    found = lists.get(path)
    if found is None:
        return _answer("404 Not Found", b"", "text/plain")
    whole = _answer("200 OK", found, "application/pkix-crl")
    return whole if method == b"GET" else whole[: -len(found)]


def _answer(status: str, body: bytes, kind: str) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + body


def _loopback() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection, not blocking. Nobody else can have come in between. Raises OSError."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        theirs = socket.socket()
        try:
            theirs.connect(listener.getsockname())
            ours, peer = listener.accept()
        except OSError:
            theirs.close()
            raise
    for end in (ours, theirs):
        end.setblocking(False)
    if peer != theirs.getsockname():
        ours.close()
        theirs.close()
        raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
    return ours, theirs
