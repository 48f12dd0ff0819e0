"""What rules of nftables have logged of UDP: the heads of new flows' first datagrams, and whole packets of DNS.

The supervisor opens both logs. It reads the first; the descriptor of the second it passes on to the gate, which reads
it (`DnsLog`) with no privilege. Which way a packet went, the hook says at which the kernel logged it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping

from mitmsec.core.model import Transport, Value
from mitmsec_redirect import headings, nflog
from mitmsec_redirect.dns_records import DnsPacket, parse_packet
from mitmsec_redirect.headings import Heading
from mitmsec_redirect.nft_udp_rules import Ends

LOCAL_IN, LOCAL_OUT = 1, 3  # linux/netfilter.h
DRAINED_LIMIT = 256  # messages; the rest stays, and is told at the next call


class FirstDatagram(Value, frozen=True):
    """The first datagram of a flow."""

    sent: bool  # by the program; else to it
    ends: Ends
    uid: int | None  # of who made the socket that sent it, where the kernel says so
    interface: int = 0  # that it came by or was to leave by: a socket may be bound to one


def first_datagrams(message: bytes) -> Iterator[FirstDatagram]:
    """Those in one message of the kernel; what is no UDP, or cut off, does not count."""
    for attributes in nflog.packets(message):
        heading, sent = headings.read(attributes.get(nflog.PAYLOAD, b"")), was_sent(attributes)
        if sent is not None and isinstance(heading, Heading) and heading.transport is Transport.UDP:
            here, there = heading.source, heading.destination
            ends = Ends(here, there) if sent else Ends(there, here)
            interface = attributes.get(nflog.INTERFACE_OUT if sent else nflog.INTERFACE_IN, b"")
            yield FirstDatagram(sent, ends, nflog.uid_of(attributes), int.from_bytes(interface))


def dns_packets(message: bytes) -> Iterator[DnsPacket]:
    """Those in one message of the kernel that are whole datagrams."""
    for attributes in nflog.packets(message):
        sent = was_sent(attributes)
        if sent is not None and (packet := parse_packet(attributes.get(nflog.PAYLOAD, b""), sent=sent)) is not None:
            yield packet


def was_sent(attributes: Mapping[int, bytes]) -> bool | None:
    """Whether the packet was on its way out; None: it was logged elsewhere."""
    return {LOCAL_OUT: True, LOCAL_IN: False}.get(int.from_bytes(attributes.get(nflog.HEADER, b"")[2:3]))


class DnsLog:
    """The gate's end. It owns the descriptor; not thread-safe."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)

    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._sock.fileno()

    def drain(self) -> list[DnsPacket]:
        """What was asked and answered since the last call, in order."""
        found: list[DnsPacket] = []
        for _ in range(DRAINED_LIMIT):
            try:
                found += dns_packets(self._sock.recv(nflog.MESSAGE_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # which only says that some were dropped
                    raise
        return found

    def close(self) -> None:
        self._sock.close()
