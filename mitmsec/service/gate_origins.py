"""Where the connections that the gate accepts were meant to go, and whose they are: by the backend that led them here.

connect_hook ── the client's cookie ─► origins map, filled in connect()        heartbeat map ◄── beat
nftables     ── the accepted socket ─► conntrack                               eventfd       ◄── beat
windivert    ── both its ends       ─► what was told before it came            eventfd       ◄── beat
what came in ── its ends            ─► legs: how to reach whom it was meant for
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import lru_cache
from typing import assert_never

from msgspec.structs import replace

from mitmsec.core.model import Endpoint, Transport
from mitmsec.gate.quic_ground import Led
from mitmsec.gate.signals import Origin
from mitmsec.gate.surroundings import Origins
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.expected_flows import ExpectedFlows
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.legs import Leg, Legs
from mitmsec_redirect.original_destination import original_destination
from mitmsec_redirect.origins import OriginTable, parse_origin, timeless
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.sockdiag import CookieLookup

UNSPECIFIED = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound
KNOWN_LIMIT = 1024  # origins of the hook's, each with whose connections they are
QUIC_PORT = 443
LEGS_LIMIT = 16  # of one connection that came in


class HookOrigins:
    """Origins of connections that the connect hook diverted (mitmsec.gate.surroundings.Origins)."""

    def __init__(self, map_fd: int) -> None:
        self._table = OriginTable(map_fd)
        self._cookies = CookieLookup()

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        """By the cookie of the client's own socket, which nobody can forge. Raises OSError: ENOTCONN after a reset."""
        cookie = self._cookies.cookie_of(client, gate)
        told = None if cookie is None else self._table.take(cookie)
        if told is None:
            accepted.getpeername()  # raises where its client has reset it by now: that is why, and it is no stranger's
            return None
        return _origin(told)


def _origin(told: bytes) -> Origin:
    """What the hook tells."""
    likewise, connected_ns = timeless(told)
    return replace(_hooked(likewise), connected_ns=connected_ns)


@lru_cache(KNOWN_LIMIT)
def _hooked(told: bytes) -> Origin:
    """A program's connections to the same origin differ in their time, and in nothing else that the hook tells."""
    origin = parse_origin(told)
    bound = origin.bound.address if origin.bound and origin.bound.address not in UNSPECIFIED else None
    return Origin(
        remote=origin.remote,
        pid=origin.pid,
        uid=origin.uid,
        comm=origin.comm,
        bound=bound,
        source=bound or origin.source,
        caller=origin.caller,
        selected=origin.selected,
    )


class QuicOrigins:
    """Of sockets whose QUIC the connect hook leads to the gate (mitmsec.gate.quic_relay.Origins)."""

    def __init__(self, map_fd: int) -> None:
        """It owns the descriptor."""
        self._fd, self._table = map_fd, OriginTable(map_fd)
        self._sockets = CookieLookup()

    def find(self, client: Endpoint, relay: Endpoint) -> Led | None:
        """By the cookie of the client's own socket. None: it was led elsewhere, or has closed. Raises OSError."""
        found = self._sockets.find(client, relay, Transport.UDP)
        if found is None:
            return None
        told = self._table.find(found.cookie)
        origin = None if told is None else _origin(told)
        return Led(found.cookie, origin) if origin is None or origin.remote.port == QUIC_PORT else None

    def forget(self, client: Endpoint, relay: Endpoint, cookie: int) -> None:
        """The place in the map of a flow that has ended is free, if its socket has closed. Raises OSError."""
        if self._sockets.find(client, relay, Transport.UDP) is None:
            self._table.take(cookie)

    def close(self) -> None:
        self._sockets.close()
        os.close(self._fd)


class NatOrigins:
    """Origins of connections that rules of nftables redirected (mitmsec.gate.surroundings.Origins)."""

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        """By what conntrack says of the accepted socket. Whose it is, only root can find out. Raises OSError."""
        remote = original_destination(accepted)
        if remote is None:
            return None
        return Origin(remote=remote, pid=0, uid=-1, comm="", source=client.address, client=client)


class LedWay:
    """How the gate reaches whom one connection was meant for (mitmsec.gate.inward.Way)."""

    def __init__(self, begin: Callable[[], Leg]) -> None:
        """`begin` tells the kernel of a leg for this connection. Raises OSError."""
        leg = begin()
        self._begin, self._legs = begin, [leg]
        self._next: Leg | None = leg
        self.is_ours = leg.listener is not None
        who = leg.listener
        self.origin = Origin(remote=leg.called, pid=0, uid=-1, comm="")
        if who is not None:
            self.origin = Origin(
                remote=leg.called,
                pid=who.pid,
                uid=who.uid,
                comm=who.comm,
                connected_ns=who.at_ns,
                caller=who.caller,
                selected=who.by_selected,
            )

    def connect(self) -> socket.socket:
        """The first leg, then further ones, as long as somebody of ours would get them."""
        leg, self._next = self._next, None
        if leg is None:
            leg = self._begin()
            self._legs.append(leg)
            if len(self._legs) > LEGS_LIMIT:
                self._legs.pop(0).close()  # long over: the flow's worker may have no more than this under way
            if leg.listener is None:
                raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return leg.connect()

    def close(self) -> None:
        for leg in self._legs:
            leg.close()


class LedWays:
    """Ways of connections that came in and were led here (mitmsec.gate.inward.Ways)."""

    def __init__(self, legs_fd: int, listeners_fd: int) -> None:
        self._legs = Legs(legs_fd, listeners_fd)

    def begin(self, accepted: socket.socket) -> LedWay:
        """Told to the kernel, not yet gone. Raises OSError."""
        return LedWay(lambda: self._legs.begin(accepted))


class ToldOrigins:
    """Origins of connections that `windivert` leads here packet by packet (mitmsec.gate.surroundings.Origins)."""

    def __init__(self, told_fd: int, heartbeat: Pulse) -> None:
        self._flows = ExpectedFlows(socket.socket(fileno=told_fd))
        self._heartbeat = heartbeat

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        """By the two ends that the accepted socket has: they were told before. Raises OSError."""
        flow = self._flows.find(client, gate, time.monotonic())
        if flow is None:
            return None
        origin = flow.origin
        return Origin(
            remote=origin.remote,
            pid=origin.pid,
            uid=origin.uid,
            comm=origin.comm,
            connected_ns=origin.connected_ns,
            source=origin.source,
            caller=origin.caller,
            selected=origin.selected,
            told=flow.process,
        )

    def beat(self) -> None:
        """Alive, and with room for more to be told."""
        self._flows.hear(time.monotonic())
        self._heartbeat.beat()


def given(kind: BackendKind, fds: list[int]) -> tuple[Origins, Callable[[], None]]:
    """Where origins are found, and how to beat. Raises ValueError for a backend that no gate serves yet."""
    match kind:
        case BackendKind.CONNECT_HOOK:
            origins_fd, heartbeat_fd = fds
            return HookOrigins(origins_fd), Heartbeat(heartbeat_fd).beat
        case BackendKind.NFTABLES:
            (pulse_fd,) = fds
            return NatOrigins(), Pulse(pulse_fd).beat
        case BackendKind.WINDIVERT:
            told_fd, pulse_fd = fds
            told = ToldOrigins(told_fd, Pulse(pulse_fd))
            return told, told.beat
        case BackendKind.REPLAY:
            raise ValueError(f"no gate serves {kind}")
        case _:
            assert_never(kind)
