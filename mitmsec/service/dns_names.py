"""The gate's ear for its run's DNS: a ring that the kernel copies packets into, and the names that they give.

ring ── DnsRing ──► parsed ──► AddressNames ──► names_of(address)
 └─ whoever asks for a name first takes what has come: a program connects right after its answer
"""

from __future__ import annotations

import asyncio
from collections import deque

from mitmsec.core import dns
from mitmsec.core.address_names import AddressNames
from mitmsec.core.dns import DnsMessage
from mitmsec_redirect.dns_hook import DnsRing
from mitmsec_redirect.dns_records import DnsPacket

TURN_LIMIT = 64  # messages; one that was made to be slow takes a millisecond
WAITING_LIMIT = 1024  # the oldest go first


class DnsNames:
    """Reads for as long as the running loop runs; owns the descriptor."""

    def __init__(self, ring_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = DnsRing(ring_fd)
        self._names = AddressNames()
        self._waiting: deque[DnsPacket] = deque(maxlen=WAITING_LIMIT)
        self._more: asyncio.Handle | None = None
        self._loop.add_reader(ring_fd, self._take)

    def names_of(self, address: str) -> tuple[str, ...]:
        """The names that answers gave this address, the one that was answered last first."""
        self._take()
        return self._names.names(address, self._loop.time())

    def _take(self) -> None:
        """Packets of anybody: what is no message is passed over, as the program will. In turns, as others have work."""
        self._waiting.extend(self._ring.drain())
        for _ in range(min(TURN_LIMIT, len(self._waiting))):
            packet = self._waiting.popleft()
            message = dns.parse(packet.payload)
            if isinstance(message, DnsMessage) and message.is_response != packet.sent:
                self._names.heard(packet.local, packet.server, message, self._loop.time())
        if self._waiting and self._more is None:
            self._more = self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        self._more = None
        self._take()

    def close(self) -> None:
        """Read no more; to be called once."""
        self._loop.remove_reader(self._ring.fileno())
        if self._more is not None:
            self._more.cancel()
        self._ring.close()
