"""What a relay of QUIC works with: who is led to it, the rest of its gate, and sockets towards origins."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

from mitmsec.audit.event import Seen
from mitmsec.core.model import Endpoint, Value
from mitmsec.gate.asking import Asks
from mitmsec.gate.crew import Crew
from mitmsec.gate.faults import Faults
from mitmsec.gate.quic_decrypting import Decrypting
from mitmsec.gate.signals import Origin
from mitmsec.gate.terms import Decides, Terms

ROOM_BYTES = 1 << 20


class Led(Value, frozen=True):
    """A program's socket, and where it was meant for; None: it was not led here, or that is told no more."""

    cookie: int
    origin: Origin | None


class Origins(Protocol):
    """Who is led here: mitmsec.service.gate_origins.QuicOrigins."""

    def find(self, client: Endpoint, relay: Endpoint) -> Led | None: ...
    def forget(self, client: Endpoint, relay: Endpoint, cookie: int) -> None: ...
    def close(self) -> None: ...


class Around(Value, frozen=True):
    """Of the gate; `governing` tells what holds for a flow that begins now."""

    governing: Callable[[], tuple[Decides, Terms]]
    record: Callable[[Seen], None]
    is_recording: Callable[[], bool]
    faults: Faults
    ask: Callable[[Asks, Origin], None]
    give_up: Callable[[Asks], None]
    names_of: Callable[[str], tuple[str, ...] | None]
    crew: Crew
    mint: Callable[[str, str], None]
    withdraw: Callable[[str], None]
    decrypting: Decrypting


def end_of(relay: socket.socket) -> Endpoint:
    """Where it hears."""
    return Endpoint.of(*relay.getsockname()[:2])


def towards(origin: Origin) -> socket.socket:
    """A socket that is connected to the origin, from where the program would have sent. Raises OSError."""
    remote = origin.remote
    ours = socket.socket(socket.AF_INET6 if remote.is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
        if origin.bound is not None:
            with contextlib.suppress(OSError):  # it has just gone
                ours.bind((origin.bound, 0))
        ours.connect((remote.address, remote.port))
    except OSError:
        ours.close()
        raise
    return ours
