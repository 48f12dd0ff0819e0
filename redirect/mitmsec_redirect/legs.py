"""The gate's own connections to listeners, for connections that were led to it as they came in.

    accepted socket ─► bind a socket ─► tell the kernel: a leg, for this peer ─► which listener would have it? whose?
                                                                           └───► connect, once that is decided

Which listener that is, the kernel says itself (sock_diag), for the leg's own addresses: so it is the one that gets the
leg, whatever else listens on the port. For the gate, which runs without privilege, by inherited descriptors.
"""

from __future__ import annotations

import errno
import os
import socket

from mitmsec.core.model import Endpoint
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect.bpf import Map
from mitmsec_redirect.inbound_records import INBOUND, Inbound, parse_inbound
from mitmsec_redirect.records import COOKIE
from mitmsec_redirect.sockdiag import CookieLookup

LOOPBACK = 1  # the number of `lo` in every network namespace

type Address = tuple[str, int] | tuple[str, int, int, int]  # a scope stands only in the socket's own form


class Leg:
    """Told to the kernel, not yet connected. Whoever has it calls `close` when the connection is over."""

    def __init__(self, legs: Map, key: bytes, sock: socket.socket, to: Address, listener: Inbound | None) -> None:
        self.called = Endpoint.of(*to[:2])
        self.listener = listener
        """Whose it is; None: nobody's whose connections were to be led to the gate."""
        self._legs, self._key, self._to = legs, key, to
        self._sock: socket.socket | None = sock

    def connect(self) -> socket.socket:
        """The socket, which is the caller's now, on its way to be connected. Once only. Raises OSError."""
        if self._sock is None:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        sock, self._sock = self._sock, None
        error = sock.connect_ex(self._to)
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            raise OSError(error, os.strerror(error))
        return sock

    def close(self) -> None:
        """Others may have its addresses. Idempotent."""
        self._legs.delete(self._key)
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Legs:
    """The legs of one gate. Not thread-safe."""

    def __init__(self, legs_fd: int, listeners_fd: int) -> None:
        self._legs = Map(legs_fd, shared.LEG.size, shared.PEER.size)
        self._listeners = Map(listeners_fd, COOKIE.size, INBOUND.size)
        self._cookies = CookieLookup()

    def begin(self, accepted: socket.socket) -> Leg:
        """The leg for a connection that was led here. Raises OSError: it has gone, or no more can be told."""
        here, peer = accepted.getsockname(), accepted.getpeername()
        sock = socket.socket(accepted.family)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.bind((here[0], 0, *here[2:]))
            source, called = Endpoint.of(*sock.getsockname()[:2]), Endpoint.of(*here[:2])
            key = shared.leg_key(source, called)
            self._legs.update(key, shared.peer_value(Endpoint.of(*peer[:2])))
        except OSError:
            sock.close()
            raise
        scope = (here[3] if len(here) > 2 else 0) or LOOPBACK  # through which every leg comes
        cookie = self._cookies.cookie_of(called, source, interface=scope)
        record = None if cookie is None else self._listeners.lookup(COOKIE.pack(cookie))
        return Leg(self._legs, key, sock, here, None if record is None else parse_inbound(record))
