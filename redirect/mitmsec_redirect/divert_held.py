"""First packets of connections, from the moment they are taken until they go back: untouched, diverted or refused."""

from __future__ import annotations

from dataclasses import dataclass

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect.divert_library import PACKET_BYTES_MOST, PACKETS_MOST, Batch, Handle
from mitmsec_redirect.divert_path import Translator
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, RecordFlag, inbound
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.nat import Flow as NatFlow
from mitmsec_redirect.nat import NatTable
from mitmsec_redirect.packet import TCP, Packet, split
from mitmsec_redirect.records import address_text
from mitmsec_redirect.refusal import refusal

SEQUENCE_AT = 4  # of a TCP header
INTERFACE_AT = 16  # of an address record
RECEIVED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """A packet and its address record, copied. `flow` is None for what is no first packet of any."""

    data: bytes
    address: bytes
    packet: Packet | None
    flow: Flow | None

    @property
    def sequence(self) -> int:
        """Of a SYN; 0 for UDP."""
        if self.packet is None or self.packet.protocol != TCP:
            return 0
        at = self.packet.transport + SEQUENCE_AT
        return int.from_bytes(self.data[at : at + 4])

    @property
    def interface(self) -> int:
        return int.from_bytes(self.address[INTERFACE_AT : INTERFACE_AT + 4], "little")

    def nat_flow(self) -> NatFlow:
        """As the NAT table knows it."""
        packet = self.packet
        assert packet is not None
        assert packet.source_port is not None
        assert packet.destination_port is not None
        return NatFlow(
            client=packet.source,
            client_port=packet.source_port,
            origin=packet.destination,
            origin_port=packet.destination_port,
            loopback=bool(self.address[FLAGS_AT] & RecordFlag.LOOPBACK),
        )


class FirstPackets:
    """One handle that takes first packets. `receive` is for its thread; all else for whoever holds the common lock."""

    def __init__(self, handle: Handle, table: NatTable) -> None:
        self.handle = handle
        self.unsent = 0
        self._inbox, self._outbox = Batch(RECEIVED_BYTES), Batch(PACKETS_MOST * 2048 + PACKET_BYTES_MOST)
        self._translator = Translator(table)
        self._count = self._length = 0

    def receive(self, timeout_s: float) -> list[Taken]:
        """What came. Raises HandleShut."""
        count, length = self.handle.receive(self._inbox, timeout_s)
        if not count:
            return []
        pieces = split(self._inbox.view, length)
        return [
            _taken(
                bytes(self._inbox.view[offset : offset + size]),
                bytes(self._inbox.address_view[at * RECORD_BYTES : (at + 1) * RECORD_BYTES]),
                packet if isinstance(packet, Packet) else None,
            )
            for at, (offset, size, packet) in enumerate(pieces)
        ]

    def put_back(self, taken: Taken) -> None:
        """It goes on: to the gate if the NAT table has its flow, else where it was meant to go."""
        self._put(taken.data, taken.address)

    def refuse(self, taken: Taken) -> None:
        """It is answered with a refusal, if it can be."""
        answer = None if taken.packet is None else refusal(taken.data, taken.packet)
        if answer is not None:
            flags = bytes([inbound(taken.address[FLAGS_AT])])
            self._put(answer, taken.address[:FLAGS_AT] + flags + taken.address[FLAGS_AT + 1 :])

    def _put(self, data: bytes, address: bytes) -> None:
        if self._count == PACKETS_MOST or self._length + len(data) > len(self._outbox.bytes):
            self.flush()
        self._length = self._outbox.put(self._count, self._length, data, address)
        self._count += 1

    def flush(self) -> None:
        """Send what was put."""
        if self._count:
            count, length = self._translator.translate(self._outbox, self._count, self._length)
            self.unsent += self.handle.send(self._outbox, count, length)
            self._count = self._length = 0


def _taken(data: bytes, address: bytes, packet: Packet | None) -> Taken:
    flow = None
    if packet is not None and packet.source_port is not None and packet.destination_port is not None:
        flow = Flow(
            transport=Transport.TCP if packet.protocol == TCP else Transport.UDP,
            local=_endpoint(packet.source, packet.source_port),
            remote=_endpoint(packet.destination, packet.destination_port),
        )
    return Taken(data, address, packet, flow)


def _endpoint(address: bytes, port: int) -> Endpoint:
    text = address_text(address) if len(address) == 16 else ".".join(map(str, address))
    return Endpoint(address=text, port=port)
