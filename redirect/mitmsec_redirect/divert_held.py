"""First packets of connections, from the moment they are taken until they go back: untouched, diverted or refused."""

from __future__ import annotations

from mitmsec.core.model import Endpoint, Transport, Value
from mitmsec_redirect.divert_library import PACKET_BYTES_MOST, PACKETS_MOST, Batch, Handle
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, RecordFlag, inbound
from mitmsec_redirect.divert_signals import Flow
from mitmsec_redirect.nat import Flow as NatFlow
from mitmsec_redirect.nat import NatTable, rewrite, rewrite_one
from mitmsec_redirect.packet import TCP, Ends, Malformed, Packet, ends_of, length_at, parse
from mitmsec_redirect.records import address_text
from mitmsec_redirect.refusal import refusal

SEQUENCE_AT = 4  # of a TCP header
INTERFACE_AT = 16  # of an address record
RECEIVED_BYTES = 1 << 20


class Taken(Value, frozen=True):
    """A packet and its address record, copied. `ends` is None for what is no first packet of any."""

    data: bytes
    address: bytes
    ends: Ends | None

    @property
    def sequence(self) -> int:
        """Of a SYN; 0 for UDP."""
        if self.ends is None or self.ends.protocol != TCP:
            return 0
        at = self.ends.transport + SEQUENCE_AT
        return int.from_bytes(self.data[at : at + 4])

    @property
    def interface(self) -> int:
        return int.from_bytes(self.address[INTERFACE_AT : INTERFACE_AT + 4], "little")


def flow_of(ends: Ends) -> Flow:
    """As the engine knows it, from the program's side."""
    return Flow(
        transport=Transport.TCP if ends.protocol == TCP else Transport.UDP,
        local=_endpoint(ends.source, ends.source_port),
        remote=_endpoint(ends.destination, ends.destination_port),
    )


def nat_flow(taken: Taken, ends: Ends) -> NatFlow:
    """As the NAT table knows it."""
    return NatFlow(
        client=ends.source,
        client_port=ends.source_port,
        origin=ends.destination,
        origin_port=ends.destination_port,
        loopback=bool(taken.address[FLAGS_AT] & RecordFlag.LOOPBACK),
    )


class FirstPackets:
    """One handle that takes first packets. `receive` is for its thread; all else for whoever holds the common lock."""

    def __init__(self, handle: Handle, table: NatTable) -> None:
        self.handle = handle
        self.unsent = 0
        self._inbox, self._outbox = Batch(RECEIVED_BYTES), Batch(PACKETS_MOST * 2048 + PACKET_BYTES_MOST)
        self._table = table
        self._count = self._length = 0

    def receive(self, timeout_s: float) -> list[Taken]:
        """What came. Raises HandleShut."""
        count, length = self.handle.receive(self._inbox, timeout_s)
        if not count:
            return []
        taken, offset, inbox = [], 0, self._inbox
        for at in range(count):
            if offset >= length:
                break
            known = length_at(inbox.view, offset, length)
            end = length if isinstance(known, Malformed) or at == count - 1 else offset + known
            data = inbox.view[offset:end].tobytes()
            address = inbox.address_view[at * RECORD_BYTES : (at + 1) * RECORD_BYTES].tobytes()
            taken.append(Taken(data, address, ends_of(data)))
            offset = end
        return taken

    def put_back(self, taken: Taken) -> None:
        """It goes on where it was meant to go."""
        self._put(taken.data, taken.address)

    def divert(self, taken: Taken) -> None:
        """It goes to the gate, if the NAT table has its flow."""
        data, address = bytearray(taken.data), bytearray(taken.address)
        if rewrite(data, len(data), address, 1, self._table) and isinstance(packet := parse(data), Packet):
            rewrite_one(data, 0, packet, address, 0, self._table)
        self._put(data, address)

    def refuse(self, taken: Taken) -> None:
        """It is answered with a refusal, if it can be."""
        packet = parse(taken.data)
        answer = refusal(taken.data, packet) if isinstance(packet, Packet) else None
        if answer is not None:
            flags = bytes([inbound(taken.address[FLAGS_AT])])
            self._put(answer, taken.address[:FLAGS_AT] + flags + taken.address[FLAGS_AT + 1 :])

    def _put(self, data: bytes | bytearray, address: bytes | bytearray) -> None:
        if self._count == PACKETS_MOST or self._length + len(data) > len(self._outbox.bytes):
            self.flush()
        self._length = self._outbox.put(self._count, self._length, data, address)
        self._count += 1

    def flush(self) -> None:
        """Send what was put."""
        if self._count:
            self.unsent += self.handle.send(self._outbox, self._count, self._length)
            self._count = self._length = 0


def _endpoint(address: bytes, port: int) -> Endpoint:
    text = address_text(address) if len(address) == 16 else ".".join(map(str, address))
    return Endpoint(address=text, port=port)
