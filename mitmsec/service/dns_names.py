"""The gate's ear for DNS: what the kernel copies of a run's packets, or what is relayed, and the names that they give.

ring or log ── copies ─┬─► parsed ──► AddressNames ──► names_of(address)
relayed, TCP or UDP ───┘ hear()
 └─ whoever asks for a name first takes what has come: a program connects right after its answer
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

from mitmsec.core import dns
from mitmsec.core.address_names import AddressNames
from mitmsec.core.dns import DnsMessage
from mitmsec.core.dns_frames import MESSAGE_LIMIT_BYTES
from mitmsec.core.model import Endpoint
from mitmsec_redirect.backend import BackendKind
from mitmsec_redirect.dns_hook import DnsRing
from mitmsec_redirect.dns_records import DnsPacket
from mitmsec_redirect.udp_log import DnsLog

TURN_S = 0.01  # of computing; a message that was made to be slow takes some milliseconds
WAITING_LIMIT = 1024  # the oldest go first


class Copies(Protocol):
    """Where packets come from: DnsRing, or DnsLog under nftables."""

    def fileno(self) -> int: ...
    def drain(self) -> list[DnsPacket]: ...
    def close(self) -> None: ...


def copies(fd: int, kind: BackendKind) -> Copies:
    """What a backend of this kind copies packets into; it owns the descriptor."""
    return DnsLog(fd) if kind is BackendKind.NFTABLES else DnsRing(fd)


class DnsNames:
    """Reads for as long as the running loop runs; owns `ring`, where there is one."""

    def __init__(self, ring: Copies | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._names = AddressNames()
        self._waiting: deque[DnsPacket] = deque(maxlen=WAITING_LIMIT)
        self._more: asyncio.Handle | None = None
        if ring is not None:
            self._loop.add_reader(ring.fileno(), self._take)

    def names_of(self, address: str) -> tuple[str, ...]:
        """The names that answers gave this address, the one that was answered last first."""
        self._take()
        return self._names.names(address, self._loop.time())

    def hear(self, local: Endpoint, server: Endpoint, sent: bool, payload: bytes) -> None:
        """A message that a flow carries to a name server (`sent`), or back; looked at when others had their turn.

        One that is longer than MESSAGE_LIMIT_BYTES is not.
        """
        if len(payload) > MESSAGE_LIMIT_BYTES:
            return
        self._waiting.append(DnsPacket(sent, local, server, payload))
        self._see_to_more()

    def _take(self) -> None:
        """Packets of anybody: what is no message is passed over, as the program will. In turns, as others have work."""
        if self._ring is not None:
            self._waiting.extend(self._ring.drain())
        if not self._waiting:
            return
        until_s = time.thread_time() + TURN_S
        while self._waiting:
            packet = self._waiting.popleft()
            message = dns.parse(packet.payload)
            if isinstance(message, DnsMessage) and message.is_response != packet.sent:
                self._names.heard(packet.local, packet.server, message, self._loop.time())
            if time.thread_time() > until_s:
                break
        self._see_to_more()

    def _see_to_more(self) -> None:
        if self._waiting and self._more is None:
            self._more = self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        self._more = None
        self._take()

    def close(self) -> None:
        """Read no more; to be called once."""
        if self._more is not None:
            self._more.cancel()
        if self._ring is not None:
            self._loop.remove_reader(self._ring.fileno())
            self._ring.close()
