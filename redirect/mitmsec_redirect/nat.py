"""The redirect of selected TCP flows to the gate, written into the packets of a batch.

    client   C:c    ──► O:o   outbound   becomes   O:c ──► C:gate   inbound   the gate sees the origin's address
    gate     C:gate ──► O:c   outbound   becomes   O:o ──► C:c      inbound   the client sees the origin's answer

Both are one move: twelve bytes of addresses and ports (IPv6: 36) are looked up and replaced by as many others. The
whole four-tuple is the key, so a client port used to two origins at once cannot be confused. Addresses only change
places, so every sum changes by one port alone, and by how much is known when the flow is added (RFC 1624). A checksum
that the record calls valid is kept valid that way; any other (offloaded, or wrong) is left to the library, which
computes it at send.

A *loopback* flow (WinDivert shows it as outbound only) stays as it is but for the gate's port: C:c ──► O:gate and back.

Measured (2 shared cores, packets of 1,200 bytes, batches of up to 255): the loop alone rewrites 0.9 million packets per
CPU second; with libebpfdivert's receive and send, 126,000 to 135,000. Leaving every checksum to the library gives
134,000 to 139,000, but for packets of 60,000 bytes 8,800 against 9,900: therefore incremental.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import StrEnum, unique
from typing import Final

from mitmsec.core.model import Value
from mitmsec_redirect.packet import IPV4_LEAST, IPV6_HEADER, PLAIN_V4, TCP, Ends, Malformed, Packet, length_at

FLOWS_MOST = 65_536
PACKET_MOST = 65_575  # no packet of a handle is longer

ADDRESS_SIZE = 80  # WINDIVERT_ADDRESS
FLAGS_AT = 10  # the byte of its bits Sniffed, Outbound, Loopback, Impostor, IPv6, IPChecksum, TCPChecksum, UDPChecksum
OUTBOUND, LOOPBACK, TCP_CHECKSUM = 0x02, 0x04, 0x40

TCP_LEAST, CHECKSUM_AT = 20, 16  # the shortest TCP header; its checksum
IPV4_ADDRESSES_AT, IPV6_ADDRESSES_AT = 12, 8
# A plain packet has nothing between its addresses and its ports, so that they are one piece.
PLAIN_V4_LEAST, PLAIN_V4_CHECKSUM_AT = IPV4_LEAST + TCP_LEAST, IPV4_LEAST + CHECKSUM_AT
PLAIN_V6_LEAST, PLAIN_V6_CHECKSUM_AT = IPV6_HEADER + TCP_LEAST, IPV6_HEADER + CHECKSUM_AT
_IPV4: Final = struct.Struct("!2xH2xHxB2x12s12xH")  # length, fragment, protocol, tuple, checksum of TCP
_IPV6: Final = struct.Struct("!4xH2x36s12xH")  # payload length, tuple, checksum
_PORTS: Final = struct.Struct("!HH")
_U16: Final = struct.Struct("!H")

type Tuple4 = bytes  # source, destination, source port, destination port, as in a packet without options
type Move = tuple[Tuple4, int, int]  # what stands there afterwards, address flags that stay, what the sum grows by
type Left = tuple[int, int, int]  # index of the address record, offset and length of the bytes


class Flow(Value, frozen=True):
    """A diverted TCP connection, as its program means it. Addresses have 4 or 16 bytes, both the same.

    Raises ValueError otherwise, and for ports beyond 65535.
    """

    client: bytes
    client_port: int
    origin: bytes
    origin_port: int
    loopback: bool = False  # the packet's address record said so: both ends are on this machine

    def __post_init__(self) -> None:
        if len(self.client) != len(self.origin) or len(self.client) not in (4, 16):
            raise ValueError("addresses of 4 or 16 bytes, both the same")
        if not (0 <= self.client_port <= 0xFFFF and 0 <= self.origin_port <= 0xFFFF):
            raise ValueError("a port beyond 65535")


@unique
class Added(StrEnum):
    """What became of a flow offered to the table."""

    ADDED = "added"  # or there already
    FULL = "full"
    TAKEN = "taken"  # at the gate it could not be told from a flow that is in the table, or from the gate's own packets


class NatTable:
    """The diverted flows, at most `limit`. What is in it is rewritten; nothing leaves it by itself.

    `rewrite` in one thread while another adds and removes is safe; two that add or remove are not.
    """

    def __init__(self, *, gate_port: int, limit: int = FLOWS_MOST) -> None:
        self.gate_port = gate_port
        self.moves: dict[Tuple4, Move] = {}
        self._limit = limit
        self._flows: dict[Tuple4, Flow] = {}  # by the tuple of the gate's packets

    def add(self, flow: Flow) -> Added:
        """From now on packets of `flow` are rewritten. The same flow again changes nothing."""
        there, back = _tuples(flow, self.gate_port)
        if self._flows.get(back[0]) == flow:
            return Added.ADDED
        if self.gate_port in (flow.client_port, flow.origin_port) or there[0] in self.moves or back[0] in self.moves:
            return Added.TAKEN
        if len(self._flows) >= self._limit:
            return Added.FULL
        self._flows[back[0]] = flow
        stay = 0xFF if flow.loopback else 0xFF ^ OUTBOUND
        self.moves[back[0]] = (back[1], stay, _growth(self.gate_port, flow.origin_port))
        self.moves[there[0]] = (there[1], stay, _growth(flow.origin_port, self.gate_port))
        return Added.ADDED

    def remove(self, flow: Flow) -> bool:
        """False if it was not there."""
        there, back = _tuples(flow, self.gate_port)
        if self._flows.get(back[0]) != flow:
            return False
        del self.moves[there[0]], self.moves[back[0]], self._flows[back[0]]
        return True

    def has(self, ends: Ends) -> bool:
        """Whether packets between these ends are rewritten."""
        key = ends.source + ends.destination + _PORTS.pack(ends.source_port, ends.destination_port)
        return key in self.moves

    def flow_at_gate(self, *, local: bytes, peer: bytes, peer_port: int) -> Flow | None:
        """Whose is a socket that the gate accepted? `local` and `peer` as its getsockname and getpeername tell."""
        return self._flows.get(local + peer + _PORTS.pack(self.gate_port, peer_port))

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, flow: object) -> bool:
        return isinstance(flow, Flow) and self._flows.get(_tuples(flow, self.gate_port)[1][0]) == flow

    def __iter__(self) -> Iterator[Flow]:
        return iter(tuple(self._flows.values()))


def rewrite(
    buffer: bytearray | memoryview,
    length: int,
    addresses: bytearray | memoryview,
    count: int,
    table: NatTable,
    divided_above: int = PACKET_MOST,
) -> list[Left]:
    """Rewrite in place the packets of a batch that belong to flows of `table`; what was left as it is, in order.

    `addresses` holds `count` WINDIVERT_ADDRESS records. Left are packets of other flows (a SYN of a new one too),
    fragments and packets with IPv4 options or IPv6 extension headers (`Fragments.rewrite` takes those), and anything
    malformed. Where a length lies, the rest of the batch is one last piece, of all records that remain.
    Of a packet longer than `divided_above` the sum is left as it is, whatever it is: who divides it computes one for
    each piece. Memoryviews are a fifth faster.
    """
    known, v4, v6, put = table.moves.get, _IPV4.unpack_from, _IPV6.unpack_from, _U16.pack_into
    left: list[Left] = []
    index = offset = checksum = 0
    while index < count and offset < length:
        room, move = length - offset, None
        first = buffer[offset]
        if first == PLAIN_V4 and room >= PLAIN_V4_LEAST:
            start, checksum_at = offset + IPV4_ADDRESSES_AT, offset + PLAIN_V4_CHECKSUM_AT
            size, fragment, protocol, key, checksum = v4(buffer, offset)
            if protocol == TCP and not fragment & 0x3FFF and size >= PLAIN_V4_LEAST:
                move = known(key)
            elif size < IPV4_LEAST:
                break
        elif first >> 4 == 6 and room >= PLAIN_V6_LEAST and buffer[offset + 6] == TCP:
            start, checksum_at = offset + IPV6_ADDRESSES_AT, offset + PLAIN_V6_CHECKSUM_AT
            payload, key, checksum = v6(buffer, offset)
            size = IPV6_HEADER + payload
            if payload >= TCP_LEAST:
                move = known(key)
        else:
            told = length_at(buffer, offset, length)
            if isinstance(told, Malformed):
                break
            size = told
        if size > room:
            break
        if move is None:
            left.append((index, offset, size))
        else:
            new, stay, growth = move
            at = index * ADDRESS_SIZE + FLAGS_AT
            flags = addresses[at]
            buffer[start : start + len(new)] = new
            if flags & TCP_CHECKSUM:
                put(buffer, checksum_at, 0xFFFE - (0xFFFE - checksum + growth) % 0xFFFF)
            elif size > divided_above:
                flags |= TCP_CHECKSUM
            addresses[at] = flags & stay
        index += 1
        offset += size
    if offset < length:
        left.append((index, offset, length - offset))
    return left


def rewrite_one(
    buffer: bytearray | memoryview,
    offset: int,
    packet: Packet,
    addresses: bytearray | memoryview,
    index: int,
    table: NatTable,
) -> bool:
    """The same for one packet of whatever headers, a first fragment included; False: it was left as it is.

    `packet` is the view of what stands at `offset`.
    """
    move = move_of(packet, table)
    return move is not None and apply(move, buffer, offset, packet, addresses, index)


def apply(
    move: Move,
    buffer: bytearray | memoryview,
    offset: int,
    packet: Packet,
    addresses: bytearray | memoryview,
    index: int,
) -> bool:
    """Write `move` into a packet that has ports; False for a first fragment so short that its checksum comes later."""
    checksum_at = packet.transport + CHECKSUM_AT
    if checksum_at + 2 > packet.length:
        return False
    new, stay, growth = move
    place(buffer, offset, packet, new[:-4])
    buffer[offset + packet.transport : offset + packet.transport + 4] = new[-4:]
    at = index * ADDRESS_SIZE + FLAGS_AT
    if packet.fragment is not None and packet.fragment.more:
        addresses[at] |= TCP_CHECKSUM  # the library sees too little of it to compute one
    if addresses[at] & TCP_CHECKSUM:
        (checksum,) = _U16.unpack_from(buffer, offset + checksum_at)
        _U16.pack_into(buffer, offset + checksum_at, 0xFFFE - (0xFFFE - checksum + growth) % 0xFFFF)
    addresses[at] &= stay
    return True


def move_of(packet: Packet, table: NatTable) -> Move | None:
    """What happens to `packet` by `table`; None to one of another flow, or without ports of TCP."""
    if packet.protocol != TCP or packet.source_port is None or packet.destination_port is None:
        return None
    return table.moves.get(
        packet.source + packet.destination + _PORTS.pack(packet.source_port, packet.destination_port)
    )


def place(buffer: bytearray | memoryview, offset: int, packet: Packet, addresses: bytes) -> None:
    """Write source and destination, in one piece, into the IP header of `packet`."""
    at = offset + (IPV4_ADDRESSES_AT if packet.version == 4 else IPV6_ADDRESSES_AT)
    buffer[at : at + len(addresses)] = addresses


def _tuples(flow: Flow, gate_port: int) -> tuple[tuple[Tuple4, Tuple4], tuple[Tuple4, Tuple4]]:
    """What the program's packets carry and what it becomes; the same of the gate's packets."""
    here_there, there_here = flow.client + flow.origin, flow.origin + flow.client
    there = here_there + _PORTS.pack(flow.client_port, flow.origin_port)
    back = there_here + _PORTS.pack(flow.origin_port, flow.client_port)
    to_gate = (here_there if flow.loopback else there_here) + _PORTS.pack(flow.client_port, gate_port)
    from_gate = (there_here if flow.loopback else here_there) + _PORTS.pack(gate_port, flow.client_port)
    return (there, to_gate), (from_gate, back)


def _growth(before: int, after: int) -> int:
    """By how much a ones' complement sum grows when one of its words changes (RFC 1624, equation 3)."""
    return (0xFFFF - before) + after
