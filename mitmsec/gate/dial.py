"""Connecting to the decided origin: non-blocking, bounded in time, several addresses staggered (RFC 8305 §5).

a ──────────────── refused
   250 ms ─► b ──────────── connected ──► the first to connect wins, the others are closed
                  └ a refusal starts the next at once
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Iterable

from mitmsec.core.model import Endpoint
from mitmsec.gate.lean_loop import Loop, Timer
from mitmsec.gate.signals import DialFailure

STAGGER_S = 0.25  # RFC 8305 §8, Connection Attempt Delay
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); the socket module does not name it in every version
PORTS_TRIED = 64  # of those that it may come from, until one is free
_TAKEN = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
_FAILURES = {
    errno.ECONNREFUSED: DialFailure.REFUSED,
    errno.ECONNRESET: DialFailure.RESET,
    errno.EPIPE: DialFailure.RESET,
    errno.ETIMEDOUT: DialFailure.TIMEOUT,
    errno.EMFILE: DialFailure.FAULT,
    errno.ENFILE: DialFailure.FAULT,
    errno.ENOBUFS: DialFailure.FAULT,
    errno.ENOMEM: DialFailure.FAULT,
}


def failure_of(error: int) -> DialFailure:
    """What an errno of socket(), bind() or connect() means; anything not listed is a way that does not exist."""
    return _FAILURES.get(error, DialFailure.UNREACHABLE)


class Dial:
    """One origin being dialled. Exactly one of `connected(sock, endpoint)` and `failed(why)` is called for each `add`
    that finds the dial idle, never before `add` returns; not after `cancel`."""

    def __init__(
        self,
        loop: Loop,
        connected: Callable[[socket.socket, Endpoint], None],
        failed: Callable[[DialFailure], None],
        *,
        deadline_s: float,
        bound: str | None = None,
        local_ports: range | None = None,
        begin: Callable[[], socket.socket] | None = None,
    ) -> None:
        """`local_ports`: come from one of these, if not from any. `begin` makes the only attempt there is, where the
        way there is known already; it raises OSError.
        """
        self._loop, self._connected, self._failed = loop, connected, failed
        self._deadline_s, self._bound, self._local_ports = deadline_s, bound, local_ports
        self._begin_known = begin
        self._waiting: deque[Endpoint] = deque()
        self._trying: dict[socket.socket, Endpoint] = {}
        self._first_failure: DialFailure | None = None
        self._timer: Timer | None = None
        self._deadline: Timer | None = None
        self._soon: Timer | None = None

    def add(self, endpoints: Iterable[Endpoint]) -> None:
        """Try these as well, in this order."""
        self._waiting.extend(endpoints)
        if self._deadline is None:
            self._first_failure = None
            self._deadline = self._loop.call_later(self._deadline_s, self._too_late)
            if error := self._begun():
                self._soon = self._loop.call_soon(functools.partial(self._attempt_failed, error))
        elif self._timer is None:
            self._timer = self._loop.call_later(STAGGER_S, self._next)

    def cancel(self) -> None:
        """Give up without a word. Idempotent."""
        for handle in (self._timer, self._deadline, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._deadline = self._soon = None
        self._waiting.clear()
        while self._trying:
            self._drop(next(iter(self._trying)))

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and (error := self._begun()):
            self._attempt_failed(error)

    def _begun(self) -> int:
        """Start the next attempt, and a clock for the one after it; an errno where that fails at once, else 0."""
        endpoint = self._waiting.popleft()
        try:
            sock = self._begin(endpoint) if self._begin_known is None else self._begin_known()
        except OSError as error:
            return error.errno or errno.EHOSTUNREACH
        self._trying[sock] = endpoint
        self._loop.add_writer(sock, functools.partial(self._writable, sock))
        if self._waiting:
            self._timer = self._loop.call_later(STAGGER_S, self._next)
        return 0

    def _begin(self, endpoint: Endpoint) -> socket.socket:
        """Raises OSError."""
        if self._local_ports is None:
            return self._attempt(endpoint, 0)
        for port in random.sample(self._local_ports, min(PORTS_TRIED, len(self._local_ports))):
            try:
                return self._attempt(endpoint, port)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def _attempt(self, endpoint: Endpoint, port: int) -> socket.socket:
        """From the local `port`; 0: from any. Raises OSError."""
        family = socket.AF_INET6 if endpoint.is_v6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        bound = self._bound if self._bound is not None and (":" in self._bound) == endpoint.is_v6 else None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if port:  # which may serve connections to other origins at the same time, if nobody listens on it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((bound or "", port))
            elif bound is not None:
                # the port is left to connect(), which can then share it between origins
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((bound, 0))
            error = sock.connect_ex((endpoint.address, endpoint.port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except OSError:
            sock.close()
            raise
        return sock

    def _writable(self, sock: socket.socket) -> None:
        endpoint = self._trying[sock]
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._drop(sock)
            return self._attempt_failed(error)
        self._loop.remove_writer(sock)
        del self._trying[sock]
        self.cancel()
        self._connected(sock, endpoint)

    def _attempt_failed(self, error: int) -> None:
        self._first_failure = self._first_failure or failure_of(error)
        if self._waiting:
            self._next()
        elif not self._trying:
            self._end(self._first_failure)

    def _too_late(self) -> None:
        self._end(DialFailure.TIMEOUT)

    def _end(self, failure: DialFailure) -> None:
        self.cancel()
        self._failed(failure)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock)
        del self._trying[sock]
        with contextlib.suppress(OSError):
            sock.close()
