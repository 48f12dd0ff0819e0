"""What a captured connection says first, as the gate would have seen it: the client's first bytes, or a server's that
speaks before it.

    SYN ─► where the client's bytes begin ── segments, in any order, more than once ─► first_bytes ─► Sniffed, Malformed
    a server's first segment, before any of those ──────────────────────────────────► server_bytes ─┘

Of a connection that began before the file, or of which a segment is missing, nothing is known. Everything is bounded:
bytes by what any answer needs, and answers by ASKED_LIMIT, for a hello can come byte by byte.
"""

from __future__ import annotations

from mitmsec.core.sniff import FIRST_BYTES_LIMIT, Malformed, NeedMore, Protocol, Sniffed, first_bytes, server_bytes

SEQUENCES = 1 << 32
ASKED_LIMIT = 256
AHEAD_LIMIT = 64  # segments that came before their turn


class Opening:
    """Of one connection."""

    __slots__ = ("_ahead", "_asked", "_begin", "_data", "_wanted", "is_settled", "shown")

    def __init__(self, sequence: int) -> None:
        """`sequence` is the SYN's: the first byte has the next one."""
        self.shown: Sniffed | Malformed | None = None
        """None: it is not known."""
        self.is_settled = False
        """Nothing that comes changes `shown`."""
        self._begin = sequence + 1
        self._data = bytearray()
        self._ahead: dict[int, bytes] = {}
        self._asked, self._wanted = 0, 1

    @property
    def held_bytes(self) -> int:
        """How much is kept until it is settled."""
        return len(self._data) + sum(map(len, self._ahead.values()))

    def give_up(self) -> None:
        """It stays unknown."""
        self._settle(None)

    def client_says(self, sequence: int, payload: bytes) -> None:
        """A segment of the client's; with `payload` cut short by the capture, as much as there is."""
        at = (sequence - self._begin) % SEQUENCES
        if at >= SEQUENCES // 2:  # some of it, or all, has been there before
            payload, at = payload[SEQUENCES - at :], 0
        if not payload or self.is_settled or at >= FIRST_BYTES_LIMIT:
            return
        if at > len(self._data):
            if len(self._ahead) >= AHEAD_LIMIT:
                return self.give_up()
            self._ahead.setdefault(at, payload[:FIRST_BYTES_LIMIT])
            return
        self._data += payload[len(self._data) - at :]
        self._join()
        self._ask()

    def server_says(self, payload: bytes) -> None:
        """A segment of the server's. One that comes before the client's first word settles the protocol."""
        if payload and not self.is_settled and not self._data and not self._ahead:
            greeting = server_bytes(payload)
            self._settle(Sniffed(protocol=greeting if isinstance(greeting, Protocol) else Protocol.TCP))

    def _join(self) -> None:
        while (at := min(self._ahead, default=SEQUENCES)) <= len(self._data):
            self._data += self._ahead.pop(at)[len(self._data) - at :]
        del self._data[FIRST_BYTES_LIMIT:]

    def _ask(self) -> None:
        if len(self._data) < self._wanted:
            return
        found = first_bytes(bytes(self._data))
        self._asked += 1
        if not isinstance(found, NeedMore):
            self._settle(found)
        elif self._asked >= ASKED_LIMIT or len(self._data) >= FIRST_BYTES_LIMIT:
            self.give_up()
        else:
            self._wanted = max(found.size_bytes or 0, len(self._data) + 1)

    def _settle(self, shown: Sniffed | Malformed | None) -> None:
        self.shown, self.is_settled = shown, True
        self._data.clear()
        self._ahead.clear()
