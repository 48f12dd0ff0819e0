"""The gate's ear for its run's DNS: a ring that the kernel copies packets into, and the names that they give.

ring ── DnsRing ──► parsed ──► AddressNames ──► names_of(address)
 └─ whoever asks for a name first takes what has come: a program connects right after its answer
"""

from __future__ import annotations

import asyncio

from mitmsec.core import dns
from mitmsec.core.address_names import AddressNames
from mitmsec.core.dns import DnsMessage
from mitmsec_redirect.dns_hook import DnsRing


class DnsNames:
    """Reads for as long as the running loop runs; owns the descriptor."""

    def __init__(self, ring_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = DnsRing(ring_fd)
        self._names = AddressNames()
        self._loop.add_reader(ring_fd, self._take)

    def names_of(self, address: str) -> tuple[str, ...]:
        """The names that answers gave this address, the one that was answered last first."""
        self._take()
        return self._names.names(address, self._loop.time())

    def _take(self) -> None:
        """Packets of anybody: what is no message is passed over, as the program will."""
        for packet in self._ring.drain():
            message = dns.parse(packet.payload)
            if isinstance(message, DnsMessage) and message.is_response != packet.sent:
                self._names.heard(packet.local, packet.server, message, self._loop.time())

    def close(self) -> None:
        """Read no more; to be called once."""
        self._loop.remove_reader(self._ring.fileno())
        self._ring.close()
