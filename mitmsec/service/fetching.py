"""One small file by HTTP, within bounds: bytes, seconds, no redirects, nothing kept between two.

Each wait, for a connection or for bytes, is cut to what is left of the whole: who answers a byte at a time, headers
included, gets no more time than who says nothing.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 16
QUIET_S = 5.0  # without a byte
ADDRESSES_LIMIT = 4  # of one name


class FetchFailed(Exception):
    """Why there is no answer."""


class Unreachable(FetchFailed):
    """Nobody answers there at all."""


def fetch(url: str, *, limit_bytes: int, deadline_s: float, body: bytes | None = None, kind: str = "") -> bytes:
    """What `url` (http) answers with status 200; with `body` (of media type `kind`) it is a POST.

    Blocks. Raises FetchFailed.
    """
    ends_s = time.monotonic() + deadline_s
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise FetchFailed("not an http address")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 80)
        connection.sock = _Timed(_connected(parts.hostname, parts.port or 80, ends_s), ends_s)
        try:
            headers = {"Connection": "close", **({"Content-Type": kind} if body is not None else {})}
            connection.request("GET" if body is None else "POST", path, body, headers)
            return _read(connection.getresponse(), limit_bytes)
        finally:
            connection.close()
    except OSError as error:
        raise Unreachable(_why(error)) from None
    except (http.client.HTTPException, ValueError) as error:
        raise FetchFailed(type(error).__name__.lower()) from None


def _connected(host: str, port: int, ends_s: float) -> socket.socket:
    """To the first of its addresses that answers. Raises OSError."""
    failure = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:ADDRESSES_LIMIT]:
        sock = socket.socket(family, kind, protocol)
        try:
            _limit(sock, ends_s)
            sock.connect(address)
            return sock
        except OSError as error:
            failure = error
            sock.close()
    raise failure


def _limit(sock: socket.socket, ends_s: float) -> None:
    """The next wait. Raises TimeoutError where nothing is left."""
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    sock.settimeout(min(QUIET_S, left_s))


class _Timed(socket.socket):
    """What http.client needs of a connected socket."""

    def __init__(self, sock: socket.socket, ends_s: float) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._ends_s = ends_s
        _limit(self, ends_s)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        _limit(self, self._ends_s)
        return super().recv_into(buffer, nbytes, flags)


def _read(response: http.client.HTTPResponse, limit_bytes: int) -> bytes:
    if response.status != http.client.OK:
        raise FetchFailed(f"HTTP status {response.status}")
    content = io.BytesIO()
    while piece := response.read1(PIECE_BYTES):
        content.write(piece)
        if content.tell() > limit_bytes:
            raise FetchFailed(f"more than {limit_bytes} bytes")
    return content.getvalue()


def _why(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror or str(error) or type(error).__name__).lower()
