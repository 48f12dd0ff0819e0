"""Later fragments of diverted flows go where their first fragment went.

Only a first fragment has ports. What the table did to it is remembered by what its later ones have as well: addresses
and identification. Nothing is reassembled, held or compared: fragments that overlap, repeat or are missing go on as
they come, and whoever reassembles them judges. TCP hardly ever fragments; this is for paths without path MTU discovery.
"""

from __future__ import annotations

from mitmsec_redirect.nat import ADDRESS_SIZE, FLAGS_AT, NatTable, apply, move_of, place, rewrite_one
from mitmsec_redirect.packet import TCP, Packet

FRAGMENTED_MOST = 256
FRAGMENTED_AGE_S = 30.0  # as long as Linux waits for the rest; RFC 8200 says 60 s, Windows does

type Key = tuple[bytes, bytes, int]
type Fate = tuple[bytes, int, float]  # addresses afterwards, address flags that stay, forgotten at


class Fragments:
    """Remembers at most `limit` fragmented packets of diverted flows, each for `age_s`; the oldest makes room."""

    def __init__(self, *, limit: int = FRAGMENTED_MOST, age_s: float = FRAGMENTED_AGE_S) -> None:
        self._limit, self._age_s = limit, age_s
        self._fates: dict[Key, Fate] = {}

    def __len__(self) -> int:
        return len(self._fates)

    def rewrite(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        packet: Packet,
        addresses: bytearray | memoryview,
        index: int,
        table: NatTable,
        *,
        now_s: float,
    ) -> bool:
        """As `nat.rewrite_one`, for fragments too. A later one whose first was not seen is left as it is: False."""
        if packet.fragment is None:
            return rewrite_one(buffer, offset, packet, addresses, index, table)
        key = (packet.source, packet.destination, packet.fragment.identification)
        self._forget(now_s)
        if not packet.fragment.offset:
            move = move_of(packet, table)
            if move is None or not apply(move, buffer, offset, packet, addresses, index):
                return False
            self._remember(key, (move[0][:-4], move[1], now_s + self._age_s))
            return True
        fate = self._fates.get(key)
        if fate is None or (packet.version == 4 and packet.protocol != TCP):
            return False
        place(buffer, offset, packet, fate[0])
        addresses[index * ADDRESS_SIZE + FLAGS_AT] &= fate[1]
        return True

    def _remember(self, key: Key, fate: Fate) -> None:
        self._fates.pop(key, None)  # to the end, where the youngest are
        if len(self._fates) >= self._limit:
            del self._fates[next(iter(self._fates))]
        self._fates[key] = fate

    def _forget(self, now_s: float) -> None:
        while self._fates and self._fates[key := next(iter(self._fates))][2] <= now_s:
            del self._fates[key]
