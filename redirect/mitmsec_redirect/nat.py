"""The redirect of selected TCP flows to the gate, written into the packets of a batch.

    client  C:c ──► O:o   outbound          becomes   O:c ──► C:gate   inbound       the gate accepts it, sees the origin
    gate    C:gate ──► O:c   outbound       becomes   O:o ──► C:c      inbound       the client sees the origin's answer

Both are one move: twelve bytes (IPv4; 36 for IPv6) of addresses and ports are looked up and replaced by as many others. The
whole four-tuple is the key, so a client port used to two origins at once cannot be confused. Since addresses only change
places, every checksum's sum changes by one port alone, known when the flow is added (RFC 1624).

A *loopback* flow (WinDivert shows it as outbound only) stays as it is but for the gate's port: C:c ──► O:gate and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum, unique

from mitmsec.core.model import Value
from mitmsec_redirect.packet import Packet

FLOWS_MOST = 65_536


class Flow(Value, frozen=True):
    """A diverted TCP connection, as its program means it. Addresses have 4 or 16 bytes, both the same."""

    client: bytes
    client_port: int
    origin: bytes
    origin_port: int
    loopback: bool = False  # the packet's address record said so: both ends are on this machine


@unique
class Added(StrEnum):
    """What became of a flow offered to the table."""

    ADDED = "added"  # or there already
    FULL = "full"
    TAKEN = "taken"  # at the gate it could not be told from a flow that is in the table, or from the gate's own packets


class NatTable:
    """The diverted flows, at most `limit`. What is in it is rewritten; nothing leaves it by itself."""

    def __init__(self, *, gate_port: int, limit: int = FLOWS_MOST) -> None:
        raise NotImplementedError

    def add(self, flow: Flow) -> Added: ...

    def remove(self, flow: Flow) -> bool:
        """False if it was not there."""

    def flow_at_gate(self, *, local: bytes, peer: bytes, peer_port: int) -> Flow | None:
        """Whose is a socket that the gate accepted? `local` and `peer` as its getsockname and getpeername tell."""

    def __len__(self) -> int: ...
    def __contains__(self, flow: Flow) -> bool: ...
    def __iter__(self) -> Iterator[Flow]: ...


type Left = tuple[int, int, int]  # index of the address record, offset and length of the bytes


def rewrite(
    buffer: bytearray | memoryview, length: int, addresses: bytearray | memoryview, count: int, table: NatTable
) -> list[Left]:
    """Rewrite in place the packets of a batch that belong to flows of `table`; what was left as it is, in order.

    `addresses` holds `count` WINDIVERT_ADDRESS records of 80 bytes. Left are: packets of other flows (a SYN of a new one
    too), with IPv4 options, IPv6 extension headers or fragments (`rewrite_one` and `Fragments` take those), and anything
    malformed. If a length lies, the rest of the batch is one last piece, of all remaining records.
    """


def rewrite_one(
    buffer: bytearray | memoryview,
    offset: int,
    packet: Packet,
    addresses: bytearray | memoryview,
    index: int,
    table: NatTable,
) -> bool:
    """The same for one packet with whatever headers, a first fragment included; False: it is left as it is."""
