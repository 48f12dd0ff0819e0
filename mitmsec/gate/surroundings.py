"""Who the gate works with: what it asks of others, and tells them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from mitmsec.audit.producer import Producer
from mitmsec.channel import Channel
from mitmsec.core.model import Endpoint, Value
from mitmsec.gate.connection import HearsDns
from mitmsec.gate.inward import Ways
from mitmsec.gate.signals import Origin


class Origins(Protocol):
    """Knows where diverted connections were going."""

    def find(self, accepted: socket.socket, client: Endpoint, gate: Endpoint) -> Origin | None:
        """The origin of the connection at whose end `accepted` is; None: no hook of this run diverted it."""


class Surroundings(Value, frozen=True):
    """Who the gate works with, each by its own channel."""

    origins: Origins
    recorder: Producer
    signer: Channel
    ask: Callable[[int, Origin], None]
    """Ask the supervisor whose connection this is; `Gate.owner` takes the answer of this number."""
    beat: Callable[[], None]
    hangs: Callable[[int], None]
    """Tell the supervisor that this worker lives and does nothing."""
    ways: Ways | None = None
    """Whom connections that came in were meant for; None: nobody leads any here."""
    names_of: Callable[[str], tuple[str, ...] | None] = lambda address: None
    """The names that DNS answers gave an address, the newest first; None: nobody looks at them."""
    dns: HearsDns | None = None
    """Who looks at DNS over TCP."""
