"""What a QUIC connection shows first: the ClientHello, out of its client's Initial packets in whatever order they come.

    datagrams ── initials ── opened ── CRYPTO frames ──► pieces at their places ──► clienthello.parse_message
                              │                           └ a place that is told twice, differently: malformed
                              └ no key opens it: passed over, as its server does

A hello with post-quantum key shares does not fit into one datagram, and browsers shuffle its pieces on purpose. After a
Retry a client begins anew under another key, so for a few connection ids pieces are kept; the first hello that is whole
is the answer. What that connection says afterwards is held against it (`Begun`): its server may have dropped what was
read here, and would take another hello. One that is said again, as a server may ask for (HelloRetryRequest), has to ask
for the same: servers go by its name. Everything is bounded: packets, connections, pieces, and how far these reach.
"""

from __future__ import annotations

from mitmsec.core.clienthello import HELLO_LIMIT_BYTES, ClientHello, Malformed, NeedMore, parse_message
from mitmsec.core.quic_packets import Cipher, Fields, Initial, Keys, Opened, client_keys, initials, opened

PACKETS_LIMIT = 64
CONNECTIONS_LIMIT = 4  # one, and another for each Retry; a server sends one at most
PIECES_LIMIT = 512  # of one hello; browsers send some dozens
FRAMES_LIMIT = 4096  # before one hello, padding between others included
RANGES_LIMIT = 256  # in an acknowledgement; a server's first packets are a handful
MORE_BYTES = 2048  # of a hello that is said again with another key share and a cookie (HelloRetryRequest)

_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO, _CLOSE = 0x00, 0x01, 0x02, 0x03, 0x06, 0x1C
_LONG_HEADER = 0x80


class QuicOpening:
    """Of one flow. Its answer, once there is one, is final."""

    __slots__ = ("_cipher", "_pieces", "answer", "begun", "packets")

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self._pieces: dict[Keys, _Pieces] = {}
        self.packets = 0
        self.answer: ClientHello | NeedMore | Malformed = NeedMore()
        self.begun: Begun | None = None
        """The connection whose hello is the answer."""

    @property
    def held_bytes(self) -> int:
        """How much is kept until there is an answer."""
        return sum(pieces.held_bytes for pieces in self._pieces.values())

    def fed(self, datagram: bytes) -> ClientHello | NeedMore | Malformed:
        """The answer after the client's next datagram. Never raises, whatever the bytes."""
        if isinstance(self.answer, NeedMore):
            self.answer = self._read(datagram)
            if not isinstance(self.answer, NeedMore):
                self._pieces.clear()
        return self.answer

    def _read(self, datagram: bytes) -> ClientHello | NeedMore | Malformed:
        if datagram[:1] < bytes([_LONG_HEADER]):
            return Malformed(reason="no QUIC handshake")
        found = list(initials(datagram))
        self.packets += max(len(found), 1)
        if self.packets > PACKETS_LIMIT:
            return Malformed(reason=f"no ClientHello in {PACKETS_LIMIT} QUIC packets")
        for initial in found:
            answer = self._packet(initial)
            if not isinstance(answer, NeedMore):
                return answer
        return NeedMore()

    def _packet(self, initial: Initial) -> ClientHello | NeedMore | Malformed:
        found = self._opened(initial)
        if found is None:
            return NeedMore()
        packet, keys = found
        if not packet.is_reserved_clear:
            return Malformed(reason="QUIC packet with reserved bits")
        if keys not in self._pieces and len(self._pieces) >= CONNECTIONS_LIMIT:
            return Malformed(reason=f"over {CONNECTIONS_LIMIT} QUIC connections")
        pieces = self._pieces.setdefault(keys, _Pieces())
        try:
            pieces.read(packet.frames)
        except _Bad as bad:
            return Malformed(reason=str(bad))
        answer = pieces.hello()
        if isinstance(answer, ClientHello):
            pieces.go_on(answer)
            self.begun = Begun(keys, pieces, self._cipher)
        return answer

    def _opened(self, initial: Initial) -> tuple[Opened, Keys] | None:
        """Once its server has answered, a client names the server's connection id, and keeps its keys."""
        for keys in (client_keys(initial.version, initial.destination), *self._pieces):
            if (packet := opened(initial, keys, self._cipher)) is not None:
                return packet, keys
        return None


class Begun:
    """A connection whose hello is whole."""

    __slots__ = ("_cipher", "_keys", "_pieces")

    def __init__(self, keys: Keys, pieces: _Pieces, cipher: Cipher) -> None:
        self._keys, self._pieces, self._cipher = keys, pieces, cipher

    @property
    def held_bytes(self) -> int:
        """How much of it is kept; at most twice that, and MORE_BYTES, once it has said more."""
        return self._pieces.held_bytes

    def agrees(self, initial: Initial) -> bool | None:
        """Whether a further Initial says nothing else than was read before. None: it is none of this connection's."""
        packet = opened(initial, self._keys, self._cipher)
        if packet is None:
            return None
        try:
            self._pieces.read(packet.frames)
        except _Bad:
            return False
        return packet.is_reserved_clear and self._pieces.asks_the_same()


class _Bad(Exception):
    """Internal: the reason travels from where it is seen to `_packet`."""


class _Pieces:
    """Of one connection's first stream of handshake bytes."""

    __slots__ = ("_count", "_data", "_first", "_frames", "_limit_bytes", "_there")

    def __init__(self) -> None:
        self._count = self._frames = 0
        self._limit_bytes = HELLO_LIMIT_BYTES
        self._first: ClientHello | None = None  # once it is whole
        self._data = bytearray()
        self._there: list[tuple[int, int]] = []  # from, to; apart from one another, in order

    @property
    def held_bytes(self) -> int:
        return len(self._data)

    def hello(self, at: int = 0) -> ClientHello | NeedMore | Malformed:
        """That which begins at this place."""
        whole_to = self._there[0][1] if self._there and self._there[0][0] == 0 else 0
        return parse_message(bytes(self._data[at:whole_to]))

    def go_on(self, hello: ClientHello) -> None:
        """It is whole. What comes now is told again, or is a second hello; or its client gives up."""
        self._count = self._frames = 0
        self._limit_bytes, self._first = min(2 * len(self._data) + MORE_BYTES, HELLO_LIMIT_BYTES), hello

    def asks_the_same(self) -> bool:
        """Whether what follows the hello is nothing yet, or another for the same (RFC 8446 §4.1.2)."""
        first, second = self._first, self.hello(len(self._first.raw) if self._first is not None else 0)
        if first is None or isinstance(second, NeedMore):
            return True
        if isinstance(second, Malformed):
            return False
        return (second.sni, second.alpn, second.ech) == (first.sni, first.alpn, first.ech)

    def read(self, frames: bytes) -> None:
        """Those that an Initial may hold (RFC 9000 §12.4). Raises _Bad."""
        reader = Fields(frames)
        while reader.left:
            kind = reader.varint()
            self._frames += 1
            if self._frames > FRAMES_LIMIT:
                raise _Bad(f"over {FRAMES_LIMIT} QUIC frames before a ClientHello")
            if kind == _PADDING:
                reader.pass_zeroes()
            elif kind == _CRYPTO:
                at, data = reader.varint(), reader.vector()
                if at is None or data is None:
                    raise _Bad("QUIC frame ends early")
                self._put(at, data)
            elif kind in (_ACK, _ACK_ECN):
                _pass_ack(reader, more=3 if kind == _ACK_ECN else 0)
            elif kind == _CLOSE and self._first is not None:
                return
            elif kind == _CLOSE:
                raise _Bad("QUIC connection closed before its ClientHello")
            elif kind != _PING:
                raise _Bad("QUIC frame that no Initial may hold")

    def _put(self, at: int, data: bytes) -> None:
        end = at + len(data)
        self._count += 1
        if end > self._limit_bytes or self._count > PIECES_LIMIT:
            raise _Bad(f"hello over 64 KiB, or in more than {PIECES_LIMIT} pieces")
        self._data += bytes(max(end - len(self._data), 0))
        apart, joined = [], (at, end)
        for piece in self._there:
            if piece[1] < at or piece[0] > end:
                apart.append(piece)
                continue
            both = slice(max(piece[0], at), min(piece[1], end))
            if self._data[both] != data[both.start - at : both.stop - at]:
                raise _Bad("QUIC handshake bytes that are told twice, differently")
            joined = min(piece[0], joined[0]), max(piece[1], joined[1])
        self._data[at:end] = data
        self._there = sorted([*apart, joined])


def _pass_ack(reader: Fields, *, more: int) -> None:
    """RFC 9000 §19.3: largest, delay, how many ranges, the first one, then two numbers each."""
    _, _, ranges, first = (reader.varint() for _ in range(4))
    if ranges is None or first is None:
        raise _Bad("QUIC frame ends early")
    if ranges > RANGES_LIMIT:
        raise _Bad(f"over {RANGES_LIMIT} ranges in a QUIC acknowledgement")
    for _ in range(2 * ranges + more):
        if reader.varint() is None:
            raise _Bad("QUIC frame ends early")
