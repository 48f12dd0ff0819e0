"""The two byte streams of a flow, dressed as the TCP segments that could have carried them (RFC 9293).

What mitmsec relays it reads as streams; packet tools want packets. A `Conversation` makes them: a handshake, data
that is acknowledged at once, an end. Addresses are the program's own and the origin's, never the gate's.

    local                              remote
      │ ── SYN  seq=a ──────────────────► │
      │ ◄────────── SYN,ACK  seq=b ────── │    opened()
      │ ── ACK ─────────────────────────► │
      │ ── data, at most 32 KiB ────────► │    carried(sent=True, data)
      │ ◄──────────────────────── ACK ─── │
      │ ── FIN,ACK ─────────────────────► │
      │ ◄────────────────── FIN,ACK ───── │    ended(reset=False)
      │ ── ACK ─────────────────────────► │

Bytes, their order and direction are what was seen. Segment borders, acknowledgements, sequence numbers and the
handshake are made up here: nothing about the real packets can be read from them. Sequence numbers wrap at 2**32.
"""

from __future__ import annotations

import ipaddress
import struct

from mitmsec.core.model import Endpoint, Value

SEGMENT_BYTES = 32_768  # payload; with headers it stays far below the 65,535 of IPv4's and IPv6's length fields
_WINDOW = 0xFFFF  # scaled by 2**7 with the option in both SYNs: 8 MiB, so no segment ever fills it
_SYN_OPTIONS = struct.pack(">BBH BBBB", 2, 4, SEGMENT_BYTES, 3, 3, 7, 1)  # MSS, window scale, padding
_HOP_LIMIT = 64
_TCP = 6
_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10


class Packet(Value, frozen=True):
    """One IP packet, complete with checksums."""

    sent: bool  # True: from local to remote
    data: bytes


class Conversation:
    """The packets of one flow. `first_sent` and `first_received` are the initial sequence numbers.

    Endpoints of different families are both written as IPv6, the other one v4-mapped. Raises ValueError for an endpoint
    that is no IP address and port.
    """

    __slots__ = ("_ends", "_next", "_v6")

    def __init__(self, local: Endpoint, remote: Endpoint, *, first_sent: int = 0, first_received: int = 0) -> None:
        ends = [Endpoint.of(local.address, local.port), Endpoint.of(remote.address, remote.port)]
        self._v6 = any(end.is_v6 for end in ends)
        self._ends = [(_packed(end.address, self._v6), end.port) for end in ends]
        self._next = [first_sent, first_received]

    def opened(self) -> list[Packet]:
        """The three-way handshake, from local."""
        return [
            self._segment(True, _SYN, options=_SYN_OPTIONS),
            self._segment(False, _SYN | _ACK, options=_SYN_OPTIONS),
            self._segment(True, _ACK),
        ]

    def carried(self, *, sent: bool, data: bytes) -> list[Packet]:
        """`data` in segments, each acknowledged. No data, no packets."""
        packets: list[Packet] = []
        for start in range(0, len(data), SEGMENT_BYTES):
            packets.append(self._segment(sent, _PSH | _ACK, data[start : start + SEGMENT_BYTES]))
            packets.append(self._segment(not sent, _ACK))
        return packets

    def ended(self, *, reset: bool) -> list[Packet]:
        """An orderly end from local, or a reset from remote."""
        if reset:
            return [self._segment(False, _RST | _ACK)]
        return [
            self._segment(True, _FIN | _ACK),
            self._segment(False, _FIN | _ACK),
            self._segment(True, _ACK),
        ]

    def _segment(self, sent: bool, flags: int, data: bytes = b"", *, options: bytes = b"") -> Packet:
        """One segment from one side; that side's sequence number moves on."""
        here, there = (0, 1) if sent else (1, 0)
        (source, source_port), (target, target_port) = self._ends[here], self._ends[there]
        acknowledged = self._next[there] & 0xFFFFFFFF if flags & _ACK else 0
        words = (20 + len(options)) // 4
        header = struct.pack(
            ">HHIIBBHHH",
            source_port,
            target_port,
            self._next[here] & 0xFFFFFFFF,
            acknowledged,
            words << 4,
            flags,
            # The window of a SYN is never scaled (RFC 7323, section 2.2); the same number serves.
            _WINDOW,
            0,
            0,
        )
        segment = header + options + data
        pseudo = source + target + struct.pack(">II", len(segment), _TCP)
        segment = segment[:16] + struct.pack(">H", checksum(pseudo + segment)) + segment[18:]
        self._next[here] += len(data) + (1 if flags & (_SYN | _FIN) else 0)
        return Packet(sent=sent, data=self._ip_header(source, target, len(segment)) + segment)

    def _ip_header(self, source: bytes, target: bytes, size_bytes: int) -> bytes:
        if self._v6:
            return struct.pack(">IHBB", 6 << 28, size_bytes, _TCP, _HOP_LIMIT) + source + target
        # Identification 0 with "don't fragment": an atomic datagram (RFC 6864, section 4).
        fields = struct.pack(">BBHHHBB", 0x45, 0, 20 + size_bytes, 0, 0x4000, _HOP_LIMIT, _TCP)
        return fields + struct.pack(">H", checksum(fields + b"\0\0" + source + target)) + source + target


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, which is not all zero.

    2**16 is 1 modulo 65,535, so the ones' complement sum of all words is the whole number's remainder: one division in
    C instead of a loop in Python.
    """
    number = int.from_bytes(data if len(data) % 2 == 0 else data + b"\0", "big")
    return 0xFFFF - (number % 0xFFFF or 0xFFFF)


def _packed(address: str, v6: bool) -> bytes:
    ip = ipaddress.ip_address(address)
    return bytes(10) + b"\xff\xff" + ip.packed if v6 and ip.version == 4 else ip.packed
